"""Ranges, tables, artifacts, places and requests that cannot be quantized with are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, QuantizeError, SpecError
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.qdq import insert_qdq, quantize_weight
from swinv2_deploy.quantize.spec import QuantizeSpec

SPEC = QuantizeSpec(calibrator="max", unsigned="always")


@pytest.mark.parametrize("amax", [0.0, -1.0, float("nan"), float("inf")])
def test_a_range_that_gives_no_scale_is_refused(amax: float, tiny_artifact: ModelArtifact) -> None:
    """With the site and the value."""
    graph = ir.load(tiny_artifact.onnx_files["model"])
    with pytest.raises(QuantizeError, match=rf"The range of layers\.0\.blocks\.0\.mlp\.fc1 is {amax}"):
        insert_qdq(graph, {"layers.0.blocks.0.mlp.fc1": amax})


def test_a_table_of_another_model_is_refused(tiny_artifact: ModelArtifact) -> None:
    """Its sites are not in the graph."""
    graph = ir.load(tiny_artifact.onnx_files["model"])
    with pytest.raises(QuantizeError, match=r"no Gemm named \['layers\.7.*belongs to another model"):
        insert_qdq(graph, {"layers.7.blocks.0.mlp.fc1": 1.0})


def test_weights_that_are_no_numbers_are_refused() -> None:
    """A row of zeros is fine: it stays zero."""
    weight = np.array([[1.0, -2.0], [0.0, 0.0]], np.float32)
    values, scale = quantize_weight(weight, "a")

    assert values.tolist() == [[64, -127], [0, 0]]
    assert scale.tolist() == [np.float32(2 / 127), 1.0]
    with pytest.raises(QuantizeError, match="The weight of a holds NaN"):
        quantize_weight(np.array([[np.nan]], np.float32), "a")


@pytest.mark.parametrize("link", [False, True])
def test_an_artifact_is_not_replaced_by_itself(link: bool, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """Not even by another name of the same folder, and not with --force."""
    path = tiny_artifact.path
    if link:
        path = tmp_path / "link"
        path.symlink_to(tiny_artifact.path)
    with pytest.raises(ArtifactError, match="is the artifact that is being quantized"):
        quantize(tiny_artifact, SPEC, ImageFolder.open(photos), path, force=True)
    assert tiny_artifact.file("onnx/model.onnx").is_file()


def test_an_artifact_without_a_graph_says_to_export_first(
    tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], photos: Path, tmp_path: Path
) -> None:
    """What 'train' makes has none."""
    bare = changed(tiny_artifact)
    shutil.rmtree(bare.path / "onnx")
    with pytest.raises(ArtifactError, match="export it first"):
        quantize(bare, SPEC, ImageFolder.open(photos), tmp_path / "q")


def test_a_changed_graph_is_refused(
    tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], photos: Path, tmp_path: Path
) -> None:
    """One byte, found before any work."""
    copy = changed(tiny_artifact)
    file = copy.onnx_files["model"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed or damaged"):
        quantize(copy, SPEC, ImageFolder.open(photos), tmp_path / "q")


def test_a_place_that_is_taken_is_known_before_the_images_are_worked_through(
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """Calibrating can take minutes."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        quantize(
            tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path / "taken", progress=lambda *_: pytest.fail("calibrated")
        )


def test_a_full_disk_while_the_table_is_written_is_reported_as_one(
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's own error names a file that no longer exists."""
    replace_file = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "calibration_table.json":
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        quantize(tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"calibrator": "guess"}, "expected one of max, percentile, entropy, mse"),
        ({"policy": "all"}, "expected one of mlp, linear"),
        ({"unsigned": "maybe"}, "expected auto, always or never"),
        ({"images": 0}, "images is 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_specs_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    """With the choices."""
    with pytest.raises(SpecError, match=words):
        QuantizeSpec(**values)
