"""Whether a file computes what the reference model computes: at every size and batch of a grid, in every row.

Shape letters: B batch, H W height and width in px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.runtime.grid import Grid, Size
from swinv2_deploy.runtime.masks import masks_for
from swinv2_deploy.runtime.runner import Array, Runner
from swinv2_deploy.runtime.torch_runner import TorchRunner

LIMIT = 1e-4
"""Largest absolute difference of any value of any output that float32 is allowed."""

NOISE_FACTOR = 10.0
"""Where this many times the reference's own rounding, float32 against float64, is more than :data:`LIMIT`, that counts."""

CHUNK_PIXELS = 4 * 256 * 256
"""Pixels the reference is given at once, one image at least: it holds more intermediate values than a runtime."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProofRow:
    """One size.

    Attributes:
        size: (height, width) in px, of the photographs where the file takes these.
        errors: Largest absolute difference from the reference over all rows and outputs, by batch.
        limit: Most that passes; None where the error is stated and not judged.
        noise: The reference's rounding noise there, measured where an error was above :data:`LIMIT`; else None.
        failure: What is wrong, in words; empty when nothing is.
    """

    size: Size
    errors: Mapping[int, float]
    limit: float | None
    noise: float | None = None
    failure: str = ""

    @property
    def max_abs(self) -> float:
        return max(self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, errors with two digits; null stands for infinity."""
        return {
            "size": list(self.size),
            "errors": {str(batch): _rounded(error) for batch, error in self.errors.items()},
            "limit": None if self.limit is None else _rounded(self.limit),
            "noise": None if self.noise is None else _rounded(self.noise),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Errors of one file over a grid.

    Attributes:
        reference: What it was compared with.
        provider: What computed it.
        rows: The grid.
    """

    reference: str
    provider: str
    rows: tuple[ProofRow, ...]

    @property
    def max_abs(self) -> float:
        """The worst error."""
        return max(row.max_abs for row in self.rows)

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(row.failure for row in self.rows if row.failure)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as the file's metadata holds them."""
        return {
            "reference": self.reference,
            "provider": self.provider,
            "max_abs": _rounded(self.max_abs),
            "grid": [row.to_dict() for row in self.rows],
        }


def read_grid(proof: Any) -> dict[Size, tuple[int, ...]] | None:
    """The grid of a proof that was read from a file's metadata, or None where it holds none that can be read."""
    try:
        grid = {
            (int(row["size"][0]), int(row["size"][1])): tuple(int(batch) for batch in row["errors"]) for row in proof["grid"]
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    fits = all(min(size) > 0 and batches and min(batches) > 0 for size, batches in grid.items())
    return grid if grid and fits else None


def prove(
    runner: Runner,
    model: SwinV2,
    grid: Grid,
    *,
    preprocessing: Preprocessing | None = None,
    judged: bool = True,
    relative_limit: float | None = None,
    progress: Callable[[ProofRow], object] = lambda row: None,
) -> Proof:
    """Run a file on seeded noise, or on synthetic photographs, and compare every row of a grid with the reference model.

    Args:
        runner: The file.
        model: Reference model with its weights.
        grid: Batches by size.
        preprocessing: For a file that takes photographs, what it does to them; the reference gets what this makes of them.
        judged: Whether errors have the limit of float32; those of quantized files are stated only.
        relative_limit: For half precision, in the place of that: most that the root mean square of an output's error over that of
            the output may be.
        progress: Called after every size.

    Raises:
        RunnerError: When one of the two does not run.
    """
    prover = _Prover(runner, model, preprocessing, judged=judged and relative_limit is None, relative_limit=relative_limit)
    rows = []
    for size, batches in grid.items():
        rows.append(prover.row(size, batches))
        progress(rows[-1])
    return Proof(reference=prover.reference.name, provider=runner.provider, rows=tuple(rows))


class _Prover:
    def __init__(
        self,
        runner: Runner,
        model: SwinV2,
        preprocessing: Preprocessing | None,
        *,
        judged: bool,
        relative_limit: float | None,
    ) -> None:
        self.runner = runner
        self.model = model
        self.preprocessing = preprocessing
        self.judged = judged
        self.relative_limit = relative_limit
        self.masks = masks_for(model.config)
        self.reference = TorchRunner(model, masks=self.masks)
        self._exact: TorchRunner | None = None

    def row(self, size: Size, batches: tuple[int, ...]) -> ProofRow:
        given, images = self._probes(size, max(batches))
        expected = _in_chunks(self.reference, images)
        found: dict[tuple[int, str], float] = {}
        relative: list[tuple[float, int, str]] = []
        for batch in batches:
            outputs = self.runner.run(given[:batch])
            if outputs.keys() != expected.keys():
                raise RunnerError(
                    f"{self.runner.name} returns {sorted(outputs)}; expected {sorted(expected)}. Export it again."
                )
            relative += [(relative_error(wanted[:batch], outputs[name]), batch, name) for name, wanted in expected.items()]
            found |= {(batch, name): difference(wanted[:batch], outputs[name]) for name, wanted in expected.items()}
        errors = {batch: max(error for (of, _), error in found.items() if of == batch) for batch in batches}
        if not self.judged:
            return ProofRow(size=size, errors=errors, limit=None, failure=self._too_far(size, relative))
        noise: float | None = None
        limits = dict.fromkeys(expected, LIMIT)
        if max(errors.values()) > LIMIT:
            self._exact = self._exact or TorchRunner(self.model, double=True, masks=self.masks)
            exact = _in_chunks(self._exact, images)
            noises = {name: difference(wanted, exact[name]) for name, wanted in expected.items()}
            noise = max(noises.values())
            # A reference without finite numbers excuses nothing.
            limits = {
                name: max(LIMIT, NOISE_FACTOR * value) if math.isfinite(value) else LIMIT for name, value in noises.items()
            }
        wrong = [(error, batch, name) for (batch, name), error in found.items() if not error <= limits[name]]
        failure = ""
        if wrong:
            error, batch, name = max(wrong)
            failure = f"{name} differs by {error:.2e} {self._place(size, batch)}; at most {limits[name]:.1e} may be"
        return ProofRow(size=size, errors=errors, limit=max(limits.values()), noise=noise, failure=failure)

    def _probes(self, size: Size, count: int) -> tuple[NDArray[Any], Array]:
        """What the file is given, and the pixels (B, C, H, W) that the reference is given."""
        if self.preprocessing is None:
            images = noise_images(size, count, self.model.config.num_channels)
            return images, images
        photographs = synthetic_photographs(size, count)
        return photographs, np.stack([self.preprocessing(photograph) for photograph in photographs])

    def _place(self, size: Size, batch: int) -> str:
        where = "at" if self.preprocessing is None else "for photographs of"
        return f"{where} {size[0]}x{size[1]} px in a batch of {batch}"

    def _too_far(self, size: Size, relative: list[tuple[float, int, str]]) -> str:
        """What is wrong in half precision, in words; empty when nothing is or nothing is judged."""
        error, batch, name = max(relative)
        if self.relative_limit is None or error <= self.relative_limit:
            return ""
        what = "is not finite" if math.isinf(error) else f"is off by {error:.1%} of its magnitude"
        return (
            f"{name} {what} {self._place(size, batch)}; at most {self.relative_limit:.0%} may be, so this "
            f"model does not suit {self.runner.precision}"
        )


def relative_error(expected: Array, found: Array) -> float:
    """Root mean square of the error over that of the output; infinite for a wrong shape, a NaN or an infinity."""
    if math.isinf(difference(expected, found)):
        return math.inf
    # Image by image, in float64: large maps in float32 would lose digits.
    pairs = [(wanted.astype(np.float64), got) for wanted, got in zip(expected, found, strict=True)]
    error = sum(float(np.square(wanted - got).sum()) for wanted, got in pairs)
    return math.sqrt(error / max(sum(float(np.square(wanted).sum()) for wanted, _ in pairs), 1e-60))


def noise_images(size: Size, batch: int, channels: int) -> Array:
    """Seeded noise (B, channels, H, W); an image is the same in every batch."""
    return np.random.default_rng(size).standard_normal((batch, channels, *size), dtype=np.float32)


def synthetic_photographs(size: Size, batch: int) -> NDArray[np.uint8]:
    """Seeded photographs (B, H, W, 3) with slopes, hard edges and noise, so that filters overshoot and round.

    One is the same in every batch.
    """
    height, width = size
    slope = np.linspace(0, 160, width)[None, :, None] + np.linspace(60, 0, height)[:, None, None]
    edges = 255.0 * (np.indices(size).sum(0) // 7 % 2)[..., None]
    photographs = []
    for index in range(batch):
        generator = np.random.default_rng([height, width, index])
        mixed = np.where(generator.random((height, width, 1)) < 0.3, edges, slope) + generator.normal(0, 12, (height, width, 3))
        photographs.append(mixed.clip(0, 255).astype(np.uint8))
    return np.stack(photographs)


def difference(expected: Array, found: Array) -> float:
    """Largest absolute difference; a wrong shape, a NaN or an infinity is infinitely far."""
    if expected.shape != found.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return math.inf
    # Image by image: the difference of feature maps of a large batch would be as large as they are.
    return max(float(np.abs(wanted - got).max()) for wanted, got in zip(expected, found, strict=True))


def _in_chunks(runner: Runner, images: Array) -> dict[str, Array]:
    count = max(1, CHUNK_PIXELS // (images.shape[2] * images.shape[3]))
    parts = [runner.run(chunk) for chunk in _chunks(images, count)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chunks(images: Array, count: int) -> Iterator[Array]:
    for start in range(0, len(images), count):
        yield images[start : start + count]


def _rounded(value: float) -> float | None:
    """Two digits, so that a file hardly changes with the machine that made it."""
    return float(f"{value:.1e}") if math.isfinite(value) else None
