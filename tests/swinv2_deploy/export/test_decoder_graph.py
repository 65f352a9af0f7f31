"""Graphs that return an image: they compute the reference at any size, and hide what the second input says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from reference_model.config import SwinV2Config
from reference_model.masking import patch_count
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS
from swinv2_deploy.artifacts import ResolutionRange, WeightsOrigin, read_artifact
from swinv2_deploy.errors import ExportError
from swinv2_deploy.export import ExportSpec, export, to_onnx
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.source import Source, untrained_model
from swinv2_deploy.runtime import TorchRunner, masks_for

Make = Callable[[SwinV2Config], SwinV2]
FULL = ResolutionRange(min=(8, 8), opt=(32, 32), max=(160, 160))
SIZES = [(32, 32, 2), (8, 8, 1), (9, 40, 1), (50, 31, 3), (61, 33, 2), (128, 96, 1), (160, 160, 1)]
KINDS = [("masked_image_modeling", 1), ("image_reconstruction", 2), ("image_reconstruction", 4)]
TOLERANCE = 3e-5
"""Relative to the largest magnitude of the image."""


def static(height: int, width: int) -> ResolutionRange:
    return ResolutionRange(min=(height, width), opt=(height, width), max=(height, width))


def of_kind(config: SwinV2Config, task: Any, upscale: int) -> SwinV2Config:
    return replace(config, task=task, num_classes=0, upscale=upscale)


def session(graph: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])


def write(model: SwinV2, resolutions: ResolutionRange) -> ir.Model:
    graph = SwinGraph(model.config, {name: value.detach().numpy() for name, value in model.state_dict().items()}, resolutions)
    return graph.build("0")


def feeds(model: SwinV2, height: int, width: int, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    images = np.random.default_rng([height, width]).standard_normal((batch, 3, height, width)).astype(np.float32)
    masks = masks_for(model.config)
    return {"pixel_values": images} | ({} if masks is None else {"bool_masked_pos": masks(images)})


def compare(model: SwinV2, found: ort.InferenceSession, values: dict[str, np.ndarray[Any, Any]]) -> None:
    with torch.no_grad():
        expected = TorchRunner(model).run(*values.values())["reconstruction"]
    (image,) = found.run(["reconstruction"], values)
    assert image.shape == expected.shape
    np.testing.assert_allclose(image, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize(("task", "upscale"), KINDS)
@pytest.mark.parametrize("changes", [{}, {"patch_size": 3, "use_absolute_embeddings": True}], ids=["plain", "odd patches"])
def test_one_graph_is_right_at_every_size(
    task: str, upscale: int, changes: dict[str, Any], tiny_config: SwinV2Config, make_model: Make
) -> None:
    """Squares, rectangles, and sizes that end within a token or a patch."""
    model = make_model(replace(of_kind(tiny_config, task, upscale), **changes))
    graph = write(model, FULL)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    found = session(graph)
    for height, width, batch in SIZES:
        compare(model, found, feeds(model, height, width, batch))


@pytest.mark.parametrize(("task", "upscale"), KINDS)
@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_a_static_graph_is_right_and_cuts_only_what_is_too_much(
    task: str, upscale: int, size: tuple[int, int], tiny_config: SwinV2Config, make_model: Make
) -> None:
    model = make_model(of_kind(tiny_config, task, upscale))
    graph = write(model, static(*size))
    found = session(graph)
    compare(model, found, feeds(model, *size, 2))

    assert found.get_outputs()[0].shape == ["batch", 3, upscale * size[0], upscale * size[1]]
    assert ("Slice" in {node.op_type for node in graph.graph}) == (size == (45, 70))
    if task == "masked_image_modeling":
        assert found.get_inputs()[1].shape == ["batch", patch_count(*size, 2)]


def test_every_row_is_the_image_with_its_own_mask(tiny_config: SwinV2Config, make_model: Make) -> None:
    model = make_model(of_kind(tiny_config, "masked_image_modeling", 1))
    found = session(write(model, FULL))
    together = feeds(model, 27, 40, 17)
    compare(model, found, together)
    (images,) = found.run(None, together)
    for row in (0, 8, 16):
        (alone,) = found.run(None, {name: value[row : row + 1] for name, value in together.items()})
        np.testing.assert_allclose(images[row], alone[0], rtol=0, atol=1e-5)


def test_hidden_pixels_have_no_influence_on_the_graph(tiny_config: SwinV2Config, make_model: Make) -> None:
    model = make_model(of_kind(tiny_config, "masked_image_modeling", 1))
    found = session(write(model, FULL))
    values = feeds(model, 32, 48, 1)
    hidden = values["bool_masked_pos"].reshape(1, 1, 16, 24).repeat(2, axis=2).repeat(2, axis=3)
    assert hidden.any()
    (image,) = found.run(None, values)
    (same,) = found.run(None, values | {"pixel_values": np.where(hidden, np.float32(9), values["pixel_values"])})
    (other,) = found.run(None, values | {"pixel_values": np.where(hidden, values["pixel_values"], np.float32(9))})

    assert np.array_equal(image, same)
    assert not np.allclose(image, other)


@pytest.mark.parametrize("shape", [(2, 255), (2, 257), (1, 256), (2, 1), (1, 1), (3, 256)])
def test_a_mask_of_another_size_is_refused_and_never_spread(
    shape: tuple[int, int], tiny_config: SwinV2Config, make_model: Make
) -> None:
    model = make_model(of_kind(tiny_config, "masked_image_modeling", 1))
    found = session(write(model, FULL))
    values = feeds(model, 32, 32, 2) | {"bool_masked_pos": np.ones(shape, np.bool_)}
    with pytest.raises(Exception, match="hidden"):
        found.run(None, values)


# --- artifacts ---------------------------------------------------------------------------------------------------------


def exported(model: SwinV2, path: Path, spec: ExportSpec | None = None) -> Any:
    source = Source(
        model=model,
        preprocessing=Preprocessing.published(model.config.image_size[0]),
        origin=WeightsOrigin(kind="file", source="x"),
        name="x",
    )
    return export(source, spec or ExportSpec(smallest=(8, 8)), path)


@pytest.mark.parametrize(("task", "upscale"), KINDS)
def test_an_artifact_keeps_task_and_weights(
    task: str, upscale: int, tiny_config: SwinV2Config, make_model: Make, tmp_path: Path
) -> None:
    """Config, weights and the names of inputs, outputs and axes."""
    model = make_model(of_kind(tiny_config, task, upscale))
    artifact = exported(model, tmp_path / "a")
    back = load_model(read_artifact(tmp_path / "a"))
    graph = onnx.load(artifact.onnx_files["model"]).graph
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }

    assert back.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    expected = {"pixel_values": ["batch", 3, "height", "width"]}
    if task == "masked_image_modeling":
        expected |= {"bool_masked_pos": ["batch", "patches"], "reconstruction": ["batch", 3, "height", "width"]}
    else:
        expected |= {"reconstruction": ["batch", 3, "upscaled_height", "upscaled_width"]}
    assert axes == expected


def test_transformers_reads_the_artifact_of_a_masked_image_model(
    tiny_config: SwinV2Config, make_model: Make, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_model(of_kind(tiny_config, "masked_image_modeling", 1))
    exported(model, tmp_path / "a")
    theirs = transformers.Swinv2ForMaskedImageModeling.from_pretrained(tmp_path / "a").eval()
    values = [torch.from_numpy(value) for value in feeds(model, 32, 32, 2).values()]
    with torch.no_grad():
        assert torch.allclose(theirs(*values).reconstruction, model(*values), atol=1e-5)


@pytest.mark.parametrize("name", ["mask_token", "decoder.0.bias"])
def test_one_wrong_number_is_found_and_nothing_is_written(
    name: str, tiny_config: SwinV2Config, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask token too: the check hides a part of its images."""

    class Spoiled(to_onnx.SwinGraph):
        def build(self, producer_version: str) -> ir.Model:
            self.weights = dict(self.weights) | {name: self.weights[name] + np.float32(0.2)}
            return super().build(producer_version)

    monkeypatch.setattr(to_onnx, "SwinGraph", Spoiled)
    with pytest.raises(ExportError, match=r"wrong: model: reconstruction differs by .* at 32x32 px"):
        exported(make_model(of_kind(tiny_config, "masked_image_modeling", 1)), tmp_path / "artifacts" / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_small_simmim_model_is_right_everywhere(tmp_path: Path) -> None:
    """Full size, at its own 192 px and at sizes never tried; 1e-4 of each pixel."""
    config = replace(VARIANTS["simmim-small-pretrain-patch4-window12-192"].config, task="masked_image_modeling")
    model = untrained_model(config, 0)
    artifact = exported(model, tmp_path / "a", ExportSpec())
    found = ort.InferenceSession(str(artifact.onnx_files["model"]), providers=["CPUExecutionProvider"])
    for height, width, batch in [(192, 192, 1), (32, 32, 2), (129, 255, 1), (320, 96, 1)]:
        values = feeds(model, height, width, batch)
        with torch.no_grad():
            expected = model(*(torch.from_numpy(value) for value in values.values())).numpy()
        (image,) = found.run(["reconstruction"], values)
        assert np.abs(image - expected).max() <= 1e-4
    stored = json.loads(next(e.value for e in onnx.load(artifact.onnx_files["model"]).metadata_props if "config" in e.key))
    assert stored["task"] == "masked_image_modeling"
