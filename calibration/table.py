"""What was measured: a range for each site, and from what. One JSON file, loaded strictly, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibration.dataset import Manifest
from calibration.errors import CalibrationError
from calibration.histograms import Histogram
from calibration.lints import Finding, LintError

SCHEMA = 1
"""Version of the file; raised whenever its keys or their meaning change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRange:
    """Range of one site, in the units of the activations.

    Attributes:
        amax: Largest magnitude to represent, from the calibrator; 0 for a dead site, which only ever was zero.
        low: Smallest value seen.
        high: Largest value seen.
        clipped: Share of the values seen that lie beyond ``amax``, 0 to 1.
    """

    amax: float
    low: float
    high: float
    clipped: float = 0.0

    def __post_init__(self) -> None:
        for name in ("amax", "low", "high", "clipped"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise CalibrationError(f"{name} is {value!r}; expected a finite number.")
            if not _is_finite(value):
                text = f"{name} is {value!r}; expected a finite number. Calibrate again, and look for NaN in the weights."
                raise LintError([Finding(code="nan-scale", text=text)])
            object.__setattr__(self, name, float(value))
        if self.low > self.high or not 0 <= self.amax <= max(abs(self.low), abs(self.high)) or not 0 <= self.clipped <= 1:
            raise CalibrationError(
                f"amax {self.amax}, low {self.low}, high {self.high} and clipped {self.clipped} contradict each other; "
                "expected low <= high, amax from 0 to the larger magnitude of the two, and clipped from 0 to 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationTable:
    """Ranges of a model's activations.

    Attributes:
        calibrator: Name of the calibrator.
        options: What the calibrator's numbers depend on besides the activations, as its percentile.
        sites: Site name to range, in the order of the sites asked for.
        images: Number of images that ran through the model.
        manifest: Which images.
        model_sha256: Hash of the weights, 64 hex digits.
        seed: Seed of the choice of images.
        histograms: Site name to what it saw, where that was asked for; not in the table's file.
    """

    calibrator: str
    options: Mapping[str, float]
    sites: Mapping[str, SiteRange]
    images: int
    manifest: Manifest
    model_sha256: str
    seed: int
    histograms: Mapping[str, Histogram] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.calibrator, str) or not self.calibrator:
            raise CalibrationError(f"calibrator is {self.calibrator!r}; expected a name.")
        for name, value in self.options.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
                raise CalibrationError(f"The option {name} is {value!r}; expected a finite number.")
        if not self.sites:
            raise CalibrationError("The table has no sites; expected at least one.")
        if isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1:
            raise CalibrationError(f"images is {self.images!r}; expected a whole number from 1.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise CalibrationError(f"seed is {self.seed!r}; expected a whole number.")
        if not isinstance(self.model_sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.model_sha256):
            raise CalibrationError(f"model_sha256 is {self.model_sha256!r}; expected 64 lowercase hex digits.")

    @property
    def amax(self) -> dict[str, float]:
        """Site name to amax."""
        return {name: site.amax for name, site in self.sites.items()}

    @property
    def dead_sites(self) -> tuple[str, ...]:
        """Sites that only ever saw zeros; they have no scale."""
        return tuple(name for name, site in self.sites.items() if site.amax == 0)

    def only(self, sites: Collection[str]) -> CalibrationTable:
        """The table of some of its sites.

        Raises:
            CalibrationError: When it does not have one of them.
        """
        unknown = sorted(set(sites) - self.sites.keys())
        if unknown:
            raise CalibrationError(f"The table has no sites {unknown[:5]}; it holds {list(self.sites)[:5]} and more.")
        return replace(
            self,
            sites={name: site for name, site in self.sites.items() if name in sites},
            histograms={name: histogram for name, histogram in self.histograms.items() if name in sites},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to ``path``, whole or not at all; a table that was there is replaced.

        Raises:
            CalibrationError: When the file cannot be written.
        """
        target = Path(path)
        content = {
            "schema": SCHEMA,
            "calibrator": self.calibrator,
            "options": dict(self.options),
            "images": self.images,
            "seed": self.seed,
            "model_sha256": self.model_sha256,
            "manifest": {"sha256": self.manifest.sha256, "files": dict(self.manifest.files)},
            "sites": {
                name: {"amax": site.amax, "low": site.low, "high": site.high, "clipped": site.clipped}
                for name, site in self.sites.items()
            },
        }
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            try:
                with temporary.open("x", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                with suppress(FileNotFoundError):
                    temporary.unlink()
        except OSError as error:
            raise CalibrationError(f"The calibration table cannot be written to {target} ({error.strerror}).") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationTable:
        """Read a table that :meth:`save` wrote.

        Raises:
            CalibrationError: When the file is missing, damaged, of another schema, or has a key too many or too few.
        """
        source = Path(path)
        try:
            content = json.loads(source.read_bytes(), parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates)
        except OSError as error:
            raise CalibrationError(f"The calibration table {source} cannot be read ({error.strerror}).") from error
        except LintError:
            raise
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{source} is no calibration table ({error}); calibrate again.") from error
        try:
            return cls._from_json(content)
        except LintError:
            raise
        except CalibrationError as error:
            raise CalibrationError(f"{source} is no valid calibration table: {error}") from error

    @classmethod
    def _from_json(cls, content: Any) -> CalibrationTable:
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != SCHEMA or isinstance(schema, bool):
            raise CalibrationError(f"schema is {schema!r}; this version reads {SCHEMA}, so calibrate again.")
        names = {"schema", "calibrator", "options", "images", "seed", "model_sha256", "manifest", "sites"}
        _require_keys(content, names, "the table")
        manifest_content = _require_keys(content["manifest"], {"sha256", "files"}, "manifest")
        manifest = Manifest(_require_object(manifest_content["files"], "manifest.files"))
        if manifest.sha256 != manifest_content["sha256"]:
            raise CalibrationError(f"manifest.sha256 is {manifest_content['sha256']!r}, but its files give {manifest.sha256}.")
        sites = {}
        for name, site in _require_object(content["sites"], "sites").items():
            _require_keys(site, {"amax", "low", "high", "clipped"}, f"site {name}")
            try:
                sites[name] = SiteRange(**site)
            except LintError as error:
                (finding,) = error.findings
                raise LintError([replace(finding, text=f"site {name}: {finding.text}")]) from error
            except CalibrationError as error:
                raise CalibrationError(f"site {name}: {error}") from error
        return cls(
            calibrator=content["calibrator"],
            options=_require_object(content["options"], "options"),
            sites=sites,
            images=content["images"],
            manifest=manifest,
            model_sha256=content["model_sha256"],
            seed=content["seed"],
        )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of float
        return False


def _require_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CalibrationError(f"{name} is a {type(value).__name__}; expected an object.")
    return value


def _require_keys(value: Any, keys: set[str], name: str) -> dict[str, Any]:
    content = _require_object(value, name)
    missing, unknown = sorted(keys - content.keys()), sorted(content.keys() - keys)
    if missing or unknown:
        raise CalibrationError(f"{name} lacks {missing} and has unknown {unknown}; expected exactly {sorted(keys)}.")
    return content


def _refuse_constant(text: str) -> float:
    words = f"the calibration table holds {text}, which is no number; expected finite ranges. Calibrate again."
    raise LintError([Finding(code="nan-scale", text=words)])


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise CalibrationError(f"it names {sorted({name for name in names if names.count(name) > 1})} twice")
    return content
