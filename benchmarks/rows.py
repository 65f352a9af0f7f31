"""What benchmarks share that go on from a file of their own: the rows it has, and the model they measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact


def known_rows(out: Path | None, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier call under the same facts; none where they differ."""
    if out is None or not out.is_file():
        return []
    content = json.loads(out.read_text(encoding="utf-8"))
    same = all(content.get(name) == value for name, value in facts.items())
    return list(content["rows"]) if same else []


def source(model: Path | None, folder: Path) -> ModelArtifact:
    """The artifact that was named, or the bundled model, exported."""
    if model is not None:
        return read_artifact(model)
    return export(source_from_artifact(bundled_artifact()), ExportSpec(), folder / "nano")
