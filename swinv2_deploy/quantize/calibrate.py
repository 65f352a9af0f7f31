"""From images, or from a table made before, to the ranges of every site; and the lints that say whether these can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.answers import answer_findings
from calibration.collect import collect
from calibration.dataset import ImageFolder
from calibration.histograms import load_histograms
from calibration.lints import Finding, require, table_findings
from calibration.pixels import PixelStatistics, pixel_findings
from calibration.table import CalibrationTable
from reference_model.attention import WindowAttention
from reference_model.model import SwinV2
from reference_model.preprocessing import (
    GRAY_MEAN,
    GRAY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageError,
    Preprocessing,
    read_image,
)
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import QuantizeError, SpecError
from swinv2_deploy.modeling.io import WEIGHTS
from swinv2_deploy.modeling.sites import watched_inputs
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import Masks, masks_for
from swinv2_deploy.runtime.runner import Array

TABLE = "calibration_table.json"
HISTOGRAMS = "calibration_histograms.json"
MOST_IMAGES = 512
"""Calibration images when none are asked for; ranges do not move beyond some hundred."""
ASKED = 64
"""Images on which a classifier's own answers are looked at, in five forms."""
SMALLEST_SIDE = 16
"""Sides in px below which pixels have no statistics."""
NORMALIZATIONS: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = tuple(
    pair
    for channels, mean, std in ((3, IMAGENET_MEAN, IMAGENET_STD), (1, GRAY_MEAN, GRAY_STD))
    for pair in ((mean, std), ((0.5,) * channels, (0.5,) * channels), ((0.0,) * channels, (1.0,) * channels))
)
"""Mean and std that models of RGB and of gray are trained with: ImageNet's, those that give -1 to 1, and none."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrated:
    """Ranges that passed.

    Attributes:
        table: Range of every site.
        skipped: Images that could not be read, with the reason.
        findings: What looks wrong and was let pass.
        chosen: The images that were measured on; none where a table was given alone.
    """

    table: CalibrationTable
    skipped: tuple[str, ...]
    findings: tuple[Finding, ...]
    chosen: ImageFolder | None = None


def read_table(path: Path) -> CalibrationTable:
    """A table made before, with the histograms beside it where there are any.

    Raises:
        CalibrationError: When it is damaged, or its histograms are.
    """
    table = CalibrationTable.load(path)
    beside = path.with_name(HISTOGRAMS)
    return replace(table, histograms=load_histograms(beside, path)) if beside.is_file() else table


def calibrate(
    artifact: ModelArtifact,
    model: SwinV2,
    spec: QuantizeSpec,
    images: ImageFolder | None,
    table: CalibrationTable | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Ranges from images, or those of a table; with both, the images only judge the table.

    Raises:
        CalibrationError: When a site cannot be measured.
        LintError: When a finding stops the quantization.
        QuantizeError: When no image can be read.
        SpecError: Without images and table.
    """
    sites = spec.sites(model.config)
    findings = [*dead_heads(model)]
    if table is not None and spec.left:
        # Ranges of what stays in float are not asked for; that others are missing is found below.
        table = table.only([name for name in watched_inputs(sites) if name in table.sites])
    if table is not None:
        findings += stale(table, artifact, sites)
    _pass(findings, spec)
    skipped: tuple[str, ...] = ()
    chosen: ImageFolder | None = None
    if images is not None:
        chosen, skipped = readable(images.select(min(spec.images or MOST_IMAGES, len(images)), spec.seed))
        recipe = artifact.preprocessing
        pixels = PixelStatistics(recipe.mean, recipe.std)
        seen = collect(
            model,
            _batches(chosen, recipe, spec.batch_for(recipe.size), progress, masks_for(model.config), pixels),
            watched_inputs(sites),
            manifest=chosen.manifest(),
            model_sha256=artifact.lineage.files[WEIGHTS],
            calibrator=spec.calibrator,
            seed=spec.seed,
            histograms=True,
        )
        findings += pixel_findings(pixels)
        if model.config.task == "classification" and artifact.lineage.weights.trained:
            findings += _answers(model, recipe, chosen.select(min(ASKED, len(chosen)), spec.seed))
        if table is not None:
            beyond = {site: seen.histograms[site].share_beyond(amax) for site, amax in table.amax.items()}
            findings += table_findings(beyond, others=True)
        table = table or seen
    if table is None:
        raise SpecError("There are neither images nor a calibration table; expected one of them. Give --data or --table.")
    findings += table_findings({site: entry.clipped for site, entry in table.sites.items()})
    _pass(findings, spec)
    return Calibrated(table=table, skipped=skipped, findings=tuple(findings), chosen=chosen)


def stale(table: CalibrationTable, artifact: ModelArtifact, sites: tuple[str, ...]) -> list[Finding]:
    """Why a table does not belong to a model: other weights, or other sites."""
    found = []
    weights = artifact.lineage.files[WEIGHTS]
    if table.model_sha256 != weights:
        text = (
            f"The calibration table was measured on weights {table.model_sha256[:12]}, but {artifact.name} has {weights[:12]}; "
            "expected the same. Calibrate this model."
        )
        found.append(Finding(code="stale-table", text=text))
    wanted = watched_inputs(sites).keys()
    if table.sites.keys() != wanted:
        missing, unknown = sorted(wanted - table.sites.keys()), sorted(table.sites.keys() - wanted)
        text = (
            f"The calibration table lacks {len(missing)} sites {missing[:3]} and has {len(unknown)} unknown {unknown[:3]}; "
            f"expected exactly the {len(wanted)} of the policy. Give the --policy it was made with, or calibrate again."
        )
        found.append(Finding(code="stale-table", text=text))
    if table.dead_sites:
        text = (
            f"The calibration table gives {list(table.dead_sites)[:3]} the range 0; expected a positive one. Calibrate again."
        )
        found.append(Finding(code="dead-site", text=text, value=float(len(table.dead_sites)), limit=0.0))
    return found


def dead_heads(model: SwinV2) -> list[Finding]:
    """Attention heads that give nothing whatever the image is: their values are zero, or nothing reads them."""
    dead = []
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            heads, width = module.num_heads, module.num_heads * module.head_dim
            silent = (module.qkv.weight[2 * width :].reshape(heads, -1) == 0).all(dim=1)
            if module.v_bias is not None:
                silent &= (module.v_bias.reshape(heads, -1) == 0).all(dim=1)
            unread = (module.proj.weight.reshape(-1, heads, module.head_dim) == 0).all(dim=2).all(dim=0)
            dead += [f"{name} head {head}" for head in (silent | unread).nonzero().flatten().tolist()]
    if not dead:
        return []
    text = (
        f"{len(dead)} attention heads give zero for every image, the first {dead[0]}; expected every head to say something. "
        "Check the checkpoint, or use --accept dead-head where they were silenced on purpose."
    )
    return [Finding(code="dead-head", text=text, value=float(len(dead)), limit=0.0)]


def _pass(findings: list[Finding], spec: QuantizeSpec) -> None:
    """Stop where a finding is certain, or any with ``strict``, unless it was accepted by name."""
    require([finding for finding in findings if finding.code not in spec.accept], strict=spec.strict)


def readable(images: ImageFolder) -> tuple[ImageFolder, tuple[str, ...]]:
    """The images that decode, and why the others do not."""
    good, skipped = [], []
    for name, path in zip(images.names, images.paths, strict=True):
        try:
            read_image(path)
            good.append(name)
        except ImageError as error:
            skipped.append(str(error))
    if not good:
        raise QuantizeError(f"None of the {len(images)} images in {images.root} can be read. The first: {skipped[0]}")
    return ImageFolder(images.root, tuple(good), images.classes), tuple(skipped)


def _batches(
    images: ImageFolder,
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None,
    masks: Masks | None,
    pixels: PixelStatistics,
) -> Iterator[torch.Tensor | tuple[torch.Tensor, ...]]:
    for start in range(0, len(images), batch_size):
        batch = np.stack([preprocessing(read_image(path)) for path in images.paths[start : start + batch_size]])
        if min(batch.shape[2:]) >= SMALLEST_SIDE:
            pixels.collect(batch)
        # Hidden patches are in every image the model was trained on, so ranges are measured with them.
        yield torch.from_numpy(batch) if masks is None else (torch.from_numpy(batch), torch.from_numpy(masks(batch)))
        if progress is not None:
            progress(start + len(batch), len(images))


def _answers(model: SwinV2, recipe: Preprocessing, images: ImageFolder) -> tuple[Finding, ...]:
    """What a classifier's answers say about some of the images."""
    index = {label: position for position, label in enumerate(model.config.labels)}
    labels = [index.get(name.split("/")[0]) if images.classes else None for name in images.names]
    resized = [recipe.resize(read_image(path)) for path in images.paths]
    others: dict[str, tuple[str, Array]] = {}
    if any(label is not None for label in labels):
        for mean, std in NORMALIZATIONS:
            if len(mean) == recipe.channels and (mean, std) != (recipe.mean, recipe.std):
                answers = _logits(model, replace(recipe, mean=mean, std=std), resized)
                others[f"with mean {mean} and std {std}"] = ("wrong-normalization", answers)
        if recipe.channels == 3:
            swapped = [np.ascontiguousarray(image[..., ::-1]) for image in resized]
            others["with red and blue swapped"] = ("swapped-channels", _logits(model, recipe, swapped))
    return answer_findings(_logits(model, recipe, resized), labels, others)


def _logits(model: SwinV2, recipe: Preprocessing, resized: list[NDArray[np.uint8]]) -> Array:
    """Answers (n, K) to images (H, W, C) that have the recipe's size, few at a time."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(resized), 8):
            pixels = np.stack([recipe.normalize(image) for image in resized[start : start + 8]])
            parts.append(model(torch.from_numpy(pixels)).numpy())
    return np.concatenate(parts)
