"""Run batches through a model and measure the range of what enters its sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from calibration.calibrators import CALIBRATORS, Calibrator, HistogramCalibrator, Recorder
from calibration.dataset import Manifest
from calibration.errors import CalibrationError
from calibration.lints import Finding, LintError
from calibration.table import CalibrationTable, SiteRange

Batch = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""Input of one call: a tensor, positional tensors, or keyword tensors. Dimension 0 of the first tensor counts images."""


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    sites: Mapping[str, str | tuple[str, int]],
    *,
    manifest: Manifest,
    model_sha256: str,
    calibrator: str | Callable[[], Calibrator] = "max",
    seed: int = 0,
    dead: Literal["raise", "keep"] = "raise",
    on_batch: Callable[[int], object] | None = None,
    histograms: bool = False,
) -> CalibrationTable:
    """Measure the range of every site.

    The model runs in evaluation mode without gradients, on the device it is on, and is left as it was. A site that runs several
    times in a call is measured over all of them.

    Args:
        model: Any module that takes a batch.
        batches: Any batches, read once.
        sites: Site name to what is watched: the first positional argument of the submodule with this name, or of (name,
            position) the positional argument at the position.
        manifest: The images in ``batches``.
        model_sha256: Hash of the model's weights.
        calibrator: A name of :data:`~calibration.calibrators.CALIBRATORS`, or what makes a calibrator for each site.
        seed: Seed that the images were chosen with, for the table.
        dead: Whether a site that only saw zeros is an error, or listed in the table's ``dead_sites``.
        on_batch: Called after each batch with the number of images so far.
        histograms: Whether the table carries what each site saw, also where the calibrator needs no histogram.

    Raises:
        CalibrationError: On a site that is no submodule, never ran, or was not given a tensor; on an unknown calibrator; and
            without batches.
        LintError: On a site that saw NaN or infinity, or is dead.
    """
    watched = {site: (target, 0) if isinstance(target, str) else target for site, target in sites.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    unknown = sorted({name for name, _ in watched.values()} - modules.keys())
    if unknown or not watched:
        raise CalibrationError(
            f"The model has no submodules {unknown}; expected at least one site, each a name of named_modules()."
        )
    make = _calibrator_factory(calibrator)
    calibrators = {site: make() for site in watched}
    recorders = {
        site: watcher if isinstance(watcher, HistogramCalibrator) else Recorder()
        for site, watcher in calibrators.items()
        if histograms
    }
    images = 0
    with ExitStack() as stack:
        stack.enter_context(_evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        for site, (name, position) in watched.items():
            watchers = {id(watcher): watcher for watcher in (calibrators[site], recorders.get(site, calibrators[site]))}
            hook = _watch(site, position, tuple(watchers.values()))
            stack.callback(modules[name].register_forward_pre_hook(hook).remove)
        for batch in batches:
            images += _call(model, batch)
            if on_batch is not None:
                on_batch(images)
    if images == 0:
        raise CalibrationError("No image ran through the model; expected at least one batch with at least one image.")
    idle = [site for site, watcher in calibrators.items() if watcher.low > watcher.high]
    if idle:
        raise CalibrationError(f"The sites {idle} saw no value in {images} images; name submodules that the model calls.")
    ranges = {site: _range(watcher) for site, watcher in calibrators.items()}
    table = CalibrationTable(
        calibrator=next(iter(calibrators.values())).name,
        options=next(iter(calibrators.values())).options,
        sites=ranges,
        images=images,
        manifest=manifest,
        model_sha256=model_sha256,
        seed=seed,
        histograms={site: recorder.histogram() for site, recorder in recorders.items()},
    )
    if table.dead_sites and dead == "raise":
        text = (
            f"The sites {list(table.dead_sites)} were zero in all {images} images, so they have no scale; leave them out, or "
            "check the weights before them."
        )
        raise LintError([Finding(code="dead-site", text=text, value=float(len(table.dead_sites)), limit=0.0)])
    return table


def _calibrator_factory(calibrator: str | Callable[[], Calibrator]) -> Callable[[], Calibrator]:
    if not isinstance(calibrator, str):
        return calibrator
    if calibrator not in CALIBRATORS:
        raise CalibrationError(f"There is no calibrator {calibrator!r}; expected one of {sorted(CALIBRATORS)}.")
    return CALIBRATORS[calibrator]


def _watch(site: str, position: int, watchers: tuple[Calibrator, ...]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        value = arguments[position] if 0 <= position < len(arguments) else None
        if not isinstance(value, Tensor):
            raise CalibrationError(
                f"Site {site} was given {type(value).__name__} at position {position} of {len(arguments)} positional "
                "arguments; expected a tensor."
            )
        try:
            for watcher in watchers:
                watcher.collect(value)
        except CalibrationError as error:
            text = f"Site {site}: {error} Check the weights and the preprocessing."
            raise LintError([Finding(code="nan-activations", text=text)]) from error

    return hook


def _range(calibrator: Calibrator) -> SiteRange:
    amax = calibrator.compute_amax()
    return SiteRange(amax=amax, low=calibrator.low, high=calibrator.high, clipped=calibrator.clipped_fraction(amax))


def _call(model: nn.Module, batch: Batch) -> int:
    """Run one batch; returns its number of images."""
    if isinstance(batch, Tensor):
        model(batch)
        return batch.shape[0]
    if isinstance(batch, Mapping):
        model(**batch)
        return next(iter(batch.values())).shape[0]
    model(*batch)
    return batch[0].shape[0]


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        # One by one: a part that was in evaluation mode stays so.
        for module in training:
            module.training = True
