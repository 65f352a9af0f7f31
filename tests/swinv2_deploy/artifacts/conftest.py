"""The smallest artifact, and how it is made, looked at and changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from swinv2_deploy.artifacts import Lineage, ModelArtifact


@pytest.fixture
def fill() -> Callable[..., None]:
    """Function that writes into a folder what the smallest artifact holds."""
    from reference_model.config import make_config
    from reference_model.preprocessing import Preprocessing
    from swinv2_deploy.artifacts import write_json

    config = make_config(embed_dim=8, depths=(1,), num_heads=(1,), window_size=4, image_size=32, num_classes=2)

    def write(folder: Path, content: bytes = b"weights") -> None:
        write_json(folder / "config.json", {"swinv2_deploy": config.to_dict()})
        write_json(folder / "preprocessor_config.json", Preprocessing.published(32).to_huggingface())
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_bytes(content)

    return write


@pytest.fixture
def make(fill: Callable[..., None]) -> Callable[..., ModelArtifact]:
    """Function from a path to the smallest artifact, written there and read back."""
    from swinv2_deploy.artifacts import Lineage, WeightsOrigin, read_artifact, write_artifact

    exported = Lineage(stage="export", spec={"a": 1}, weights=WeightsOrigin(kind="untrained", source="seed 0"))

    def write(path: Path, lineage: Lineage = exported, **options: Any) -> ModelArtifact:
        with write_artifact(path, lineage, **options) as folder:
            fill(folder)
        return read_artifact(path)

    return write


@pytest.fixture
def entries() -> Callable[[Path], list[str]]:
    """Function from a folder to the names in it, hidden ones too."""
    return lambda folder: sorted(os.listdir(folder))


@pytest.fixture
def rewrite() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Function that changes the content of a lineage file."""
    from swinv2_deploy.artifacts import write_json

    def apply(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads((path / "lineage.json").read_text("utf-8"))
        change(content)
        write_json(path / "lineage.json", content)

    return apply
