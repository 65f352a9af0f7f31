"""INT8 files with a rest in half precision: same integers, types right, numbers near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from reference_model.model import SwinV2
from swinv2_deploy import __version__
from swinv2_deploy.artifacts import ModelArtifact, ResolutionRange
from swinv2_deploy.errors import ExportError
from swinv2_deploy.export.precision import half_from_float32
from swinv2_deploy.export.rest import half_rest
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.sites import quantization_sites
from swinv2_deploy.quantize.qdq import insert_qdq
from swinv2_deploy.runtime import OnnxRunner

SIZES = ResolutionRange(min=(16, 16), opt=(32, 32), max=(64, 64))
HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def quantized(model: SwinV2, amax: float = 4.0) -> ir.Model:
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    graph = SwinGraph(model.config, weights, SIZES).build(__version__)
    return insert_qdq(graph, dict.fromkeys(quantization_sites(model.config), amax))


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_scales_and_products_are_half_and_integers_stay(tiny_model: SwinV2, kind: Any, tmp_path: Path) -> None:
    before = {
        name: value.const_value.numpy()
        for name, value in quantized(tiny_model).graph.initializers.items()
        if value.dtype == ir.DataType.INT8
    }
    graph = half_from_float32(quantized(tiny_model), kind).graph
    after = {name: value.const_value.numpy() for name, value in graph.initializers.items() if value.dtype == ir.DataType.INT8}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    pairs = [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 3 * len(quantization_sites(tiny_model.config))
    assert {node.inputs[1].dtype for node in pairs} == {HALF[kind]}
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "typed.onnx")
    # Shape inference fails where an operator's inputs are of two types.
    onnx.checker.check_model(str(tmp_path / "typed.onnx"), full_check=True)


def test_a_product_whose_scale_fp16_cannot_hold_stays_fp32(tiny_model: SwinV2) -> None:
    site = "layers.0.blocks.1.mlp.fc1"
    with torch.no_grad():
        tiny_model.get_submodule(site).weight[3] *= 1e-6
    graph = half_from_float32(quantized(tiny_model), "fp16").graph
    types = {node.name: node.inputs[1].dtype for node in graph if node.op_type == "DequantizeLinear"}
    assert types[f"{site}.weight.dequantize"] == types[f"{site}.input.dequantize"] == ir.DataType.FLOAT
    assert sum(dtype == ir.DataType.FLOAT for dtype in types.values()) == 2
    wide = half_from_float32(quantized(tiny_model), "bf16").graph
    assert {node.inputs[1].dtype for node in wide if node.op_type == "DequantizeLinear"} == {ir.DataType.BFLOAT16}


@pytest.fixture
def int8_file(tiny_artifact: ModelArtifact, tmp_path: Path) -> Path:
    model = ir.load(tiny_artifact.path / "onnx" / "model.onnx")
    insert_qdq(model, dict.fromkeys(quantization_sites(tiny_artifact.config), 4.0))
    model.metadata_props["swinv2_deploy.precision"] = "int8"
    ir.save(model, tmp_path / "model_int8.onnx")
    return tmp_path / "model_int8.onnx"


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_the_new_file_is_near_the_old_one_and_says_what_it_is(
    int8_file: Path, tiny_artifact: ModelArtifact, kind: Any, tmp_path: Path
) -> None:
    target = tmp_path / f"half_{kind}.onnx"
    proof = half_rest(int8_file, target, kind, load_model(tiny_artifact))
    runner = OnnxRunner(target)
    assert (runner.precision, runner.facts.rest, runner.emulated) == ("int8", kind, kind == "bf16")
    assert runner.facts.values["proof"] == proof.to_dict()
    images = np.random.default_rng(1).standard_normal((2, 3, 32, 48)).astype(np.float32)
    old = OnnxRunner(int8_file).run(images)["logits"]
    moved = np.abs(runner.run(images)["logits"] - old).max() / old.std()
    assert 0 < moved < {"fp16": 0.1, "bf16": 0.4}[kind]


def test_only_an_int8_file_with_an_fp32_rest_is_taken(int8_file: Path, tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    model = load_model(tiny_artifact)
    with pytest.raises(ExportError, match="is fp32 with fp32 beside it; expected INT8 with an FP32 rest"):
        half_rest(tiny_artifact.path / "onnx" / "model.onnx", tmp_path / "x.onnx", "fp16", model)
    half_rest(int8_file, tmp_path / "half.onnx", "fp16", model)
    with pytest.raises(ExportError, match="is int8 with fp16 beside it"):
        half_rest(tmp_path / "half.onnx", tmp_path / "x.onnx", "fp16", model)
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_moves_too_far_is_refused(
    int8_file: Path, tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swinv2_deploy.export import rest

    monkeypatch.setattr(rest, "LARGEST_CHANGE", 1e-9)
    with pytest.raises(ExportError, match=r"the output logits of model_int8\.onnx moves by"):
        half_rest(int8_file, tmp_path / "half.onnx", "fp16", load_model(tiny_artifact))
