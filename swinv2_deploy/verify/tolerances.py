"""How much drift passes: defaults for each precision, and the TOML file that changes them. No torch import."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime.runner import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerances:
    """Limits for one precision. None means that it is measured and not judged.

    Attributes:
        max_abs: Largest absolute difference of any output value; where ``noise_factor`` times the reference's own rounding
            noise is larger, that counts.
        noise_factor: How many times the noise of float32 may be exceeded before a difference counts, for ``max_abs``, ties
            and batch slots.
        cosine: Smallest mean cosine similarity of an output, over images.
        agreement: Smallest share of images with the reference's top-1; ties are not counted against it.
        top1_drop: Largest loss of top-1 accuracy, in percentage points.
        sweep_cosine: Smallest cosine similarity at any size of the sweep.
        site_sqnr_db: Smallest signal to noise in dB that a part of a block may have by itself, on the reference's own inputs.
        slot_error: Largest difference between an image alone and in a batch, relative to the root mean square of the output.
    """

    max_abs: float | None = None
    noise_factor: float = 10.0
    cosine: float | None = None
    agreement: float | None = None
    top1_drop: float | None = None
    sweep_cosine: float | None = None
    slot_error: float | None = None
    site_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        bounds = {
            "cosine": (-1, 1),
            "agreement": (0, 1),
            "sweep_cosine": (-1, 1),
            "top1_drop": (0, 100),
            "site_sqnr_db": (-200, 200),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = bounds.get(field.name, (0, math.inf))
            if value is None and field.name != "noise_factor":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not low <= value <= high:
                raise SpecError(f"The tolerance {field.name} is {value!r}; expected a number from {low} to {high}.")


_QUANTIZED = Tolerances(cosine=0.99, agreement=0.95, top1_drop=1.0, sweep_cosine=0.98, slot_error=0.005, site_sqnr_db=15.0)

DEFAULTS: dict[Precision, Tolerances] = {
    "fp32": Tolerances(max_abs=1e-4, cosine=0.999999, agreement=1.0, sweep_cosine=0.999999, slot_error=1e-5, site_sqnr_db=80.0),
    "fp16": Tolerances(cosine=0.9999, agreement=0.99, top1_drop=0.5, sweep_cosine=0.999, slot_error=0.005),
    "bf16": Tolerances(cosine=0.999, agreement=0.98, top1_drop=1.0, sweep_cosine=0.99, slot_error=0.05),
    "int8": _QUANTIZED,
    "uint8": _QUANTIZED,
}
"""See ``docs/how-to/verify.md`` for what was measured to set them."""

OTHER = Tolerances(top1_drop=1.0, slot_error=0.005)
"""Limits for the files of another artifact, such as a pruned one: a different function, of which accuracy is asked and no more."""


def load_tolerances(path: Path) -> dict[Precision, Tolerances]:
    """The defaults with the changes of a TOML file: a table a precision, ``false`` for what must not be judged.

    Raises:
        SpecError: When the file is not readable, names something unknown, or gives an impossible number.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(
            f"The tolerances {path} cannot be read ({error}); expected a TOML file such as [int8] cosine = 0.99."
        ) from error
    names = [field.name for field in fields(Tolerances)]
    tolerances = dict(DEFAULTS)
    for precision, table in content.items():
        if precision not in DEFAULTS:
            raise SpecError(_unknown(precision, list(DEFAULTS), f"table of {path}"))
        if not isinstance(table, dict):
            raise SpecError(f"{path} gives {precision} = {table!r}; expected a table: [{precision}].")
        for key in table:
            if key not in names:
                raise SpecError(_unknown(key, names, f"key of [{precision}] in {path}"))
        changes: dict[str, Any] = {key: None if value is False else value for key, value in table.items()}
        tolerances[precision] = replace(DEFAULTS[precision], **changes)
    return tolerances


def _unknown(name: str, known: Collection[str], what: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{name!r} is no {what}; did you mean {nearest!r}? Known are {', '.join(known)}."
