"""The policy ``attention``: both inputs of both batched products, the same numbers in PyTorch and in either file."""

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
import torch.nn.functional as F
from onnx import TensorProto
from typer.testing import CliRunner

from calibration.collect import collect
from calibration.dataset import ImageFolder, Manifest
from calibration.lints import LintError
from reference_model.attention import WindowAttention
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.cli.app import app
from swinv2_deploy.errors import ArtifactError, QuantizeError
from swinv2_deploy.modeling import load_model, quantization_sites
from swinv2_deploy.modeling.fake_quant import FakeQuantProduct, fake_quantize
from swinv2_deploy.modeling.sites import input_names, watched_inputs
from swinv2_deploy.modeling.trained import TRAINED_WEIGHTS, TrainedForm, load_trained, read_trained
from swinv2_deploy.pipeline import quantize_aware
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.qdq import Flavor, insert_qdq
from swinv2_deploy.quantize.spec import QatSpec, QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner, masks_for
from swinv2_deploy.runtime.onnx_runner import EXACT_PRODUCTS, saturates
from swinv2_deploy.runtime.openvino_runner import OpenVinoRunner

pytest.importorskip("modelopt")

SPEC = QuantizeSpec(calibrator="max", policy="attention", unsigned="always")
BLOCKS = [f"layers.{stage}.blocks.{block}" for stage in range(2) for block in range(2)]
PRODUCTS = [f"{block}.attn.{product}" for block in BLOCKS for product in ("qk", "av")]


@pytest.fixture(scope="module")
def result(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    """The tiny artifact with its attention in INT8 as well."""
    return quantize(tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path_factory.mktemp("attention") / "tiny-int8")


def images_of(artifact: ModelArtifact, photos: Path, count: int = 21) -> np.ndarray[Any, Any]:
    return np.stack([artifact.preprocessing(read_image(path)) for path in ImageFolder.open(photos).paths[:count]])


def test_calibration_finds_exactly_the_inputs_of_the_policy(
    result: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path
) -> None:
    """Each block has its linear layers as before and two inputs for each product; the ranges are those computed apart here."""
    linear = quantize(
        tiny_artifact, replace(SPEC, policy="linear"), ImageFolder.open(photos), result.artifact.path.parent / "l"
    )
    both = [name for product in PRODUCTS for name in input_names(product)]
    assert len(both) == 16
    assert set(result.table.sites) == {*linear.table.sites, *both}
    assert {site: result.table.sites[site] for site in linear.table.sites} == linear.table.sites
    assert [name for name in result.table.sites if name.startswith("layers.0.blocks.1.attn.")] == [
        f"layers.0.blocks.1.attn.{name}" for name in ("qkv", "qk.q", "qk.k", "av.weights", "av.v", "proj")
    ]

    model = load_model(tiny_artifact)
    largest: dict[str, float] = {}

    def watch(module: WindowAttention, qkv: torch.Tensor, block: str) -> None:
        bias = module.qkv_bias()
        q, k, v = (qkv + (0 if bias is None else bias)).unflatten(-1, (3, module.num_heads, -1)).unbind(-3)
        for name, value in (("qk.q", F.normalize(q, dim=-1)), ("qk.k", F.normalize(k, dim=-1)), ("av.v", v)):
            largest[f"{block}.attn.{name}"] = float(value.abs().max())

    for block in BLOCKS:
        attention = model.get_submodule(f"{block}.attn")
        assert isinstance(attention, WindowAttention)
        attention.qkv.register_forward_hook(
            lambda _, inputs, out, block=block, attention=attention: watch(attention, out, block)
        )
    with torch.no_grad():
        model(torch.from_numpy(images_of(tiny_artifact, photos)))
    assert {name: result.table.amax[name] for name in largest} == pytest.approx(largest, rel=1e-5)
    assert all(0.05 < result.table.amax[f"{block}.attn.av.weights"] <= 1 for block in BLOCKS)


def test_a_table_of_the_old_policies_has_the_same_bits(tiny_artifact: ModelArtifact, photos: Path) -> None:
    """Watching a site's first input by name, as before there were two."""
    images = torch.from_numpy(images_of(tiny_artifact, photos, 4))
    for policy in ("mlp", "linear"):
        sites = quantization_sites(tiny_artifact.config, policy)
        tables = [
            collect(
                load_model(tiny_artifact),
                [images],
                watched,
                manifest=Manifest({"noise": "0" * 64}),
                model_sha256="0" * 64,
                calibrator="entropy",
            )
            for watched in ({site: site for site in sites}, watched_inputs(sites))
        ]
        assert tables[0] == tables[1]
        assert tuple(tables[1].sites) == sites


@pytest.mark.parametrize("flavor", ["int8", "uint8"])
def test_every_product_of_a_file_computes_what_its_fake_quantizer_does(
    flavor: Flavor, result: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """Given the same input: at most one step apart where the input lies between two steps, and equal sums of the same steps."""
    proto = onnx.load(result.artifact.onnx_files[f"model_{flavor}"])
    nodes = {node.name: node for node in proto.graph.node}
    watched: list[str] = []
    for site in PRODUCTS:
        quantizers = [nodes[f"{name}.quantize"] for name in input_names(site)]
        watched += [value for node in quantizers for value in (node.input[0], node.output[0])] + [nodes[site].output[0]]
    bytes_of = TensorProto.INT8 if flavor == "int8" else TensorProto.UINT8
    for value in watched:
        kind = bytes_of if value.endswith(".quantize") else TensorProto.FLOAT
        proto.graph.output.append(onnx.helper.make_tensor_value_info(value, kind, None))
    onnx.save(proto, tmp_path / "watched.onnx")
    options = ort.SessionOptions()
    if saturates():
        options.add_session_config_entry(*EXACT_PRODUCTS)
    session = ort.InferenceSession(str(tmp_path / "watched.onnx"), options, providers=["CPUExecutionProvider"])
    found = session.run(watched, {"pixel_values": images_of(tiny_artifact, photos, 3)})

    for index, site in enumerate(PRODUCTS):
        *tensors, out = (torch.from_numpy(value) for value in found[5 * index : 5 * index + 5])
        if site.endswith("qk") and flavor == "uint8":  # whose keys are turned as bytes
            tensors[2:] = [value.transpose(-2, -1) for value in tensors[2:]]
        amax = [result.table.amax[name] for name in input_names(site)]
        product = FakeQuantProduct(amax, learned=False)
        rounded = []
        for (given, got), quantizer, largest in zip(
            (tensors[:2], tensors[2:]), (product.first_quantizer, product.second_quantizer), amax, strict=True
        ):
            steps = got.double() - (0 if flavor == "int8" else 128)
            expected = (quantizer(given).double() * 127 / largest).round()
            assert (steps - expected).abs().max() <= 1, site
            assert (steps != expected).double().mean() < 1e-3, site
            assert steps.unique().numel() > 20, site
            rounded.append(steps * (largest / 127))
        torch.testing.assert_close(out.double(), rounded[0] @ rounded[1], atol=1e-5, rtol=1e-5, msg=site)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 16), (28, 44), (64, 96)])
def test_files_and_fake_quantizers_agree_at_every_size(
    height: int, width: int, result: QuantizeResult, tiny_artifact: ModelArtifact
) -> None:
    """With windows that shrink to the map, that need padding, and that are shifted and masked."""
    images = np.random.default_rng(0).standard_normal((3, 3, height, width)).astype(np.float32)
    model = load_model(tiny_artifact)
    with torch.no_grad():
        plain = model(torch.from_numpy(images)).numpy()
        fake_quantize(model, result.table.amax)
        expected = model(torch.from_numpy(images)).numpy()
    files = result.artifact.onnx_files
    forms = {name: OnnxRunner(files[name], threads=1).run(images)["logits"] for name in ("model_int8", "model_uint8")}
    spread = np.abs(plain).max()
    assert np.abs(expected - plain).max() > 1e-3 * spread
    for name, logits in forms.items():
        assert np.abs(logits - expected).max() < 0.01 * spread, name
    assert np.abs(forms["model_uint8"] - forms["model_int8"]).max() < 0.005 * spread


def test_openvino_computes_the_same(result: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path) -> None:
    """Within the rounding of another order of sums; one site moved by a step would show as little."""
    images = images_of(tiny_artifact, photos, 7)
    file = result.artifact.onnx_files["model_int8"]
    expected = OnnxRunner(file, threads=1).run(images)["logits"]
    found = OpenVinoRunner(file, threads=1).run(images)["logits"]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_fixed_sizes_and_masked_models_have_their_products_in_int8(
    make_artifact: Callable[..., ModelArtifact], masked_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    for name, artifact in (("static", make_artifact(static=True)), ("masked", masked_artifact)):
        made = quantize(artifact, SPEC, ImageFolder.open(photos), tmp_path / name)
        images = images_of(artifact, photos, 5)
        masks = masks_for(artifact.config)
        inputs = [torch.from_numpy(images)] if masks is None else [torch.from_numpy(images), torch.from_numpy(masks(images))]
        model = load_model(artifact)
        fake_quantize(model, made.table.amax)
        with torch.no_grad():
            outputs = model(*inputs)
        expected = outputs.numpy() if isinstance(outputs, torch.Tensor) else outputs["reconstruction"].numpy()
        for flavor in ("int8", "uint8"):
            runner = OnnxRunner(made.artifact.onnx_files[f"model_{flavor}"], threads=1, masks=masks)
            found = next(iter(runner.run(images).values()))
            assert np.abs(found - expected).mean() < 0.01 * np.abs(expected).mean(), (name, flavor)


def test_the_signed_form_has_a_pair_right_before_each_input_and_the_temperature_behind(result: QuantizeResult) -> None:
    """What TensorRT makes INT8 products of; every pair has one scale, the zero point 0 and one reader."""
    graph = ir.load(result.artifact.onnx_files["model_int8"]).graph
    nodes = {node.name: node for node in graph}
    for site in PRODUCTS:
        assert nodes[site].op_type == "MatMul"
        for place, name in enumerate(input_names(site)):
            value = nodes[site].inputs[place]
            assert value is not None
            pair = [value.producer(), value.producer().inputs[0].producer()]  # type: ignore[union-attr]
            assert [node.op_type for node in pair if node] == ["DequantizeLinear", "QuantizeLinear"]
            assert len(value.uses()) == 1
            scale, zero = (graph.initializers[f"{name}.{part}"].const_value for part in ("scale", "zero_point"))
            assert scale is not None
            assert zero is not None
            assert scale.numpy() == np.float32(result.table.amax[name] / 127)
            assert zero.numpy() == np.int8(0)
        if site.endswith("qk"):
            [reader] = nodes[site].outputs[0].consumers()
            assert reader.op_type == "Mul"
            assert reader.inputs[1].name.endswith("temperature")  # type: ignore[union-attr]


def test_onnx_runtime_multiplies_the_products_in_integers(result: QuantizeResult, tmp_path: Path) -> None:
    """In both forms, as it does the linear layers."""
    for flavor in ("int8", "uint8"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / f"{flavor}.onnx")
        ort.InferenceSession(str(result.artifact.onnx_files[f"model_{flavor}"]), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(tmp_path / f"{flavor}.onnx").graph
        integer = {node.name for node in graph.node if node.op_type == "MatMulIntegerToFloat"}
        assert integer == set(quantization_sites(result.artifact.config, "attention")), flavor


def test_one_range_of_a_product_is_not_enough(tiny_artifact: ModelArtifact) -> None:
    model = ir.load(tiny_artifact.onnx_files["model"])
    with pytest.raises(QuantizeError, match=r"no range of layers\.0\.blocks\.0\.attn\.qk\.k; expected one of both inputs"):
        insert_qdq(model, {"layers.0.blocks.0.attn.qk.q": 1.0})
    absent = {"layers.9.blocks.0.attn.av.weights": 1.0, "layers.9.blocks.0.attn.av.v": 1.0}
    with pytest.raises(QuantizeError, match=r"no MatMul named \['layers\.9\.blocks\.0\.attn\.av'\]"):
        insert_qdq(model, absent)
    with pytest.raises(QuantizeError, match="no linear layers or batched products"):
        fake_quantize(load_model(tiny_artifact), absent)


def test_queries_without_their_temperature_before_the_product_are_refused(tiny_artifact: ModelArtifact) -> None:
    """Their range is that of normalized vectors: anything else would be clipped."""
    model = ir.load(tiny_artifact.onnx_files["model"])
    [scaling] = [node for node in model.graph if node.name == "layers.0.blocks.0.attn.q_scaled"]
    scaling.op_type = "Div"
    with pytest.raises(QuantizeError, match=r"queries of layers\.0\.blocks\.0\.attn\.qk come from Div; expected normalized"):
        insert_qdq(model, {f"layers.0.blocks.0.attn.qk.{name}": 1.0 for name in "qk"})


def test_a_table_of_another_policy_is_refused(result: QuantizeResult, tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    with pytest.raises(LintError, match=r"lacks 0 sites .* and has 16 unknown"):
        quantize(tiny_artifact, replace(SPEC, policy="linear"), None, tmp_path / "q", table=result.table)


def test_a_budget_leaves_whole_products_in_float(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """A sweep measures a product with both of its inputs; the table keeps the ranges of both, or of none."""
    spec = replace(SPEC, unsigned="never", images=10, sensitivity=True)
    swept = quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path / "swept").sensitivity
    assert swept is not None
    assert tuple(site.site for site in swept.sites) == quantization_sites(tiny_artifact.config, "attention")
    work = {site.site: site.macs for site in swept.sites}
    # 16 tokens of a window see 16 others, where the projection has 16 channels for each.
    assert work["layers.0.blocks.0.attn.qk"] == pytest.approx(work["layers.0.blocks.0.attn.proj"])
    assert work["layers.0.blocks.0.attn.av"] == pytest.approx(work["layers.0.blocks.0.attn.proj"])

    loudest = swept.worst()[0].site
    budget = max(site.without.sqnr_db for site in swept.sites) + 2
    made = quantize(tiny_artifact, replace(spec, budget_sqnr=budget), ImageFolder.open(photos), tmp_path / "some")
    assert made.choice is not None
    assert made.choice.left
    assert loudest in made.choice.left or len(made.choice.left) > 1
    assert list(made.table.sites) == list(watched_inputs(made.choice.sites))
    stored = json.loads(made.artifact.file("sensitivity.json").read_text())
    assert stored["choice"]["sites"] == list(made.choice.sites)


def test_training_with_the_policy_ends_in_files_of_the_trained_ranges(
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """And what was trained loads strictly: a product that lost a range is refused."""
    qat = QatSpec(epochs=1, learning_rate=1e-3, batch_size=7, ranges="learned")
    made = quantize_aware(tiny_artifact, SPEC, qat, ImageFolder.open(photos), tmp_path / "qat", run=tmp_path / "run")
    form = load_trained(made.artifact)
    assert form.ranges.keys() == made.table.sites.keys()
    moved = [name for name in form.ranges if abs(form.ranges[name] / made.table.amax[name] - 1) > 1e-4]
    assert any(".qk." in name for name in moved)
    assert any(".av." in name for name in moved)
    images = images_of(tiny_artifact, photos, 5)
    with torch.no_grad():
        expected = form.fake_quantized()(torch.from_numpy(images)).numpy()
    for flavor in ("int8", "uint8"):
        found = OnnxRunner(made.artifact.path / f"onnx/model_{flavor}.onnx", threads=1).run(images)["logits"]
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()

    lost = {name: amax for name, amax in form.ranges.items() if not name.endswith("0.attn.av.v")}
    TrainedForm(model=form.model, ranges=lost).save(tmp_path / TRAINED_WEIGHTS)
    with pytest.raises(ArtifactError, match=r"lacks a range: There is no range of layers\.0\.blocks\.0\.attn\.av\.v"):
        read_trained(tmp_path / TRAINED_WEIGHTS, tiny_artifact.config)


def test_the_command_names_what_the_policy_quantizes(
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "quantize",
        "--model",
        str(tiny_artifact.path),
        "--data",
        str(photos),
        "--policy",
        "attention",
        "--calibrator",
        "max",
    ]
    made = CliRunner().invoke(app, [*arguments, "--out", "made", "--uint8", "never"])
    assert made.exit_code == 0, made.output
    words = " ".join(made.output.split())
    assert "both batched products of attention: queries by keys, softmax weights by values, 25 sites" in words
    types = {node.name: node.op_type for node in onnx.load(tmp_path / "made/onnx/model_int8.onnx").graph.node}
    assert types["layers.1.blocks.1.attn.av.v.quantize"] == "QuantizeLinear"
