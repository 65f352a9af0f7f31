"""A drift report as one HTML file that needs nothing beside it: no network, no script, light and dark, from phone to desk."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from reference_model.preprocessing import ImageError, read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.verify.charts import decibels, layer_chart, site_chart, speed_chart, sweep_chart
from swinv2_deploy.verify.metrics import Flip
from swinv2_deploy.verify.report import CandidateReport, DriftReport

TEMPLATE = "page.html.jinja"
PICTURES = 12
"""Changed answers shown as pictures for each file; report.json has all."""
SIDE = 200
"""Longest side of these pictures in px."""


def report_page(report: DriftReport, artifact: ModelArtifact) -> str:
    """The page as text. Pictures of changed answers are read from the report's image folder, where they still are."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("swinv2_deploy.verify", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["decibels"] = decibels
    environment.filters["zip"] = lambda first, second: list(zip(first, second, strict=False))
    environment.filters["rejectattr_same"] = lambda rows: [row for row in rows if row[1] != row[2]]
    candidates = report.candidates
    drops = [item.classes.detectable_drop for item in candidates if item.classes and item.classes.detectable_drop is not None]
    flips = [
        (item, _pictured(item.classes.flips[:PICTURES], Path(report.data)), len(item.classes.flips))
        for item in candidates
        if item.classes is not None and item.classes.flips
    ]
    content = json.dumps(report.to_dict(), ensure_ascii=False).encode()
    return environment.get_template(TEMPLATE).render(
        report=report,
        name=artifact.name,
        classified=any(item.classes is not None for item in candidates),
        detectable=max(drops) if drops else None,
        measured=[item for item in candidates if item.layers],
        layers=layer_chart(candidates),
        sites=_sites(candidates),
        sweep=sweep_chart(candidates),
        speed=speed_chart(candidates),
        flips=flips,
        lineage=_lineage(artifact),
        data="data:application/json;base64," + base64.b64encode(content).decode(),
    )


def _sites(candidates: Sequence[CandidateReport]) -> list[tuple[CandidateReport, Any]]:
    return [(item, chart) for item in candidates if (chart := site_chart(item))]


def _pictured(flips: Sequence[Flip], folder: Path) -> list[tuple[Flip, str]]:
    return [(flip, _picture(folder / flip.image)) for flip in flips]


def _picture(path: Path) -> str:
    """A small JPEG as a data address; empty where the image is gone or cannot be read."""
    try:
        picture = Image.fromarray(read_image(path))
    except ImageError:
        return ""
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _lineage(artifact: ModelArtifact) -> list[tuple[str, str]]:
    lineage = artifact.lineage
    rows = [("made by", f"{lineage.stage}, {lineage.created}")]
    if lineage.parent:
        rows.append(("from", f"{lineage.parent.get('name', '')}, {lineage.parent.get('sha256', '')[:16]}"))
    rows.append(("origin of the weights", f"{lineage.weights.kind}: {lineage.weights.source}"))
    return rows
