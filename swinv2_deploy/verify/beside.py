"""Two drift reports side by side: what a newer one gained and lost against an older one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.verify.report import SCHEMA


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure of one file in both reports.

    Attributes:
        file: Name of the file, with the back end or artifact where it has one.
        figure: What it is.
        first: In the first report; None where it has none.
        second: In the second report.
        better: Whether the second is better; None where equal, not comparable, or neither is.
    """

    file: str
    figure: str
    first: float | None
    second: float | None
    better: bool | None


FIGURES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("top-1, %", ("classes", "top1", "1"), True),
    ("points lost", ("classes", "drop"), False),
    ("agreement, %", ("classes", "agreement"), True),
    ("calibration error", ("classes", "calibration_error", "1"), False),
    ("SQNR, dB", ("output", "sqnr_db"), True),
    ("largest difference", ("output", "max_abs"), False),
    ("speed, 1 image", ("latencies", "0", "speedup"), True),
    ("MiB", ("size_bytes",), False),
    ("failed gates", ("failed",), False),
)
"""Name, way through a candidate's JSON, and whether more is better."""

_SCALES = {"top-1, %": 100.0, "agreement, %": 100.0, "MiB": 1 / 2**20}


def read_report(path: Path) -> dict[str, Any]:
    """A report from its file, from the folder it lies in, or the newest of an artifact.

    Raises:
        ArtifactError: When there is none, or it is damaged or of another schema.
    """
    file = path
    if path.is_dir():
        here = path / "report.json"
        found = sorted(path.glob("reports/*/report.json"))
        if not here.is_file() and not found:
            raise ArtifactError(f"{path} holds no report; make one with 'swinv2-deploy verify'.")
        file = here if here.is_file() else found[-1]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        schema, candidates = content["schema"], content["candidates"]
        [candidate["name"] + candidate["back_end"] for candidate in candidates]
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be read ({error.strerror}); give a report.json, its folder, or an artifact."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} is no drift report ({type(error).__name__}: {error}); give one that 'verify' wrote."
        ) from error
    if schema != SCHEMA:
        raise ArtifactError(f"{file} has schema {schema!r}; this version reads {SCHEMA}.")
    return dict(content) | {"path": str(file)}


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """Every figure that one of two reports has, file by file, and what a reader must know before comparing them."""
    sides = [{_label(item): _flat(item) for item in report["candidates"]} for report in (first, second)]
    rows = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        for figure, way, more in FIGURES:
            values = [_value(side.get(name), way, _SCALES.get(figure, 1.0)) for side in sides]
            if values != [None, None]:
                rows.append(
                    Row(file=name, figure=figure, first=values[0], second=values[1], better=_better(*values, more=more))
                )
    return rows, _cautions(first, second)


def _cautions(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    notices = []
    for key, words in (("data", "photographs of"), ("images", "a number of photographs,"), ("task", "models for")):
        if first.get(key) != second.get(key):
            notices.append(
                f"The reports are of other {words} {first.get(key)} and {second.get(key)}; figures may not be comparable."
            )
    if first.get("artifact_sha256") != second.get("artifact_sha256"):
        notices.append("The reports are of two artifacts; drift is that from each one's own FP32 model.")
    return notices


def _label(item: Mapping[str, Any]) -> str:
    owner = f"{item['owner']}: " if item.get("owner") else ""
    return f"{owner}{item['name']}" + ("" if item["back_end"] == "onnxruntime" else f" in {item['back_end']}")


def _flat(item: Mapping[str, Any]) -> dict[str, Any]:
    outputs = list((item.get("outputs") or {}).values())
    failed = sum(check.get("passed") is False for check in item.get("checks") or [])
    return dict(item) | {"output": outputs[0] if outputs else {}, "failed": failed}


def _value(item: Mapping[str, Any] | None, way: tuple[str, ...], scale: float) -> float | None:
    value: Any = item
    for step in way:
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return (
        float(value) * scale
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )


def _better(first: float | None, second: float | None, *, more: bool) -> bool | None:
    if first is None or second is None or first == second:
        return None
    return (second > first) is more
