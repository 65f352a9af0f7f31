"""One data model for the builder's log and the inspector's JSON, and what is counted in it."""

from __future__ import annotations

import json

import pytest

from reference_model.config import SwinV2Config, make_config
from swinv2_deploy.engine.coverage import check_floors, coverage
from swinv2_deploy.engine.layers import EngineLayer, layers_from_json, layers_from_log
from swinv2_deploy.errors import EngineBuildError


def tensor(name: str, dims: str, dtype: str) -> str:
    return f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], Datatype: {dtype}, Format: (Linear) x }}"


def line(
    name: str, kind: str, *, inputs: list[str], outputs: list[str], constants: list[str] = (), origins: list[str] = ()
) -> str:  # type: ignore[assignment]
    metadata = "".join(f"[ONNX Layer: {origin}]" for origin in origins)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [{', '.join(inputs)}], Constants: [{', '.join(constants)}], "
        f"Outputs: [{', '.join(outputs)}], TacticName: {name}_0xab, StreamId: 0, Metadata: {metadata}"
    )


def product(site: str, dtype: str, place: int, suffix: str = "") -> str:
    return line(
        f"{site}{suffix}_myl0_{place}",
        "gemm",
        inputs=[tensor("x, y", "-1,32", dtype)],
        constants=[tensor("w", "32,96", dtype), tensor("bias", "1,96", "Half")],
        outputs=[tensor("out", "-1,96", "Half")],
        origins=[site, f"{site}.input.dequantize"],
    )


BLOCK = "layers.0.blocks.0"
SITES = [f"{BLOCK}.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def attention(*, fused: bool) -> list[str]:
    origins = [f"{BLOCK}.attn.{part}" for part in ("qk", "softmax", "av")]
    operands = [tensor("q", "-1,64,32", "Half"), tensor("k", "-1,32,64", "Half")]
    out = [tensor("o", "-1,64,32", "Half")]
    if fused:
        return [line("_gemm_mha_v2_myl0_9", "kgen", inputs=operands, outputs=out, origins=origins)]
    return [
        line("qk_myl0_9", "gemm", inputs=operands, outputs=out, origins=origins[:1]),
        line("__myl_SubExpSumDivMul_myl0_10", "kgen", inputs=out, outputs=out, origins=origins[1:2]),
        line("av_myl0_11", "gemm", inputs=operands, outputs=out, origins=origins[2:]),
    ]


MOVES = line("__myl_ReshTranSlic_myl0_1", "kgen", inputs=[tensor("a", "4", "Half")], outputs=[tensor("b", "4", "Half")])
SHAPE = line("__myl_IotaMul_myl0_2", "kgen", inputs=[], outputs=[tensor("b", "4", "Int64")])


def log(*lines: str) -> list[str]:
    return ["Total Activation Memory: 5 bytes", "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: x, IOMode: Input"]


@pytest.fixture
def config() -> SwinV2Config:
    return make_config(embed_dim=32, depths=(1,), num_heads=(1,), window_size=8, image_size=64, patch_size=4, num_classes=3)


def test_a_layer_of_the_log_keeps_types_shapes_and_origins() -> None:
    [layer] = layers_from_log(log(product(SITES[0], "Int8", 3)))
    assert (layer.type, layer.kind, layer.operands, layer.profile) == ("gemm", "product", "int8 x int8", 0)
    assert layer.inputs[0].name == "x, y"
    assert layer.inputs[0].dims == (-1, 32)
    assert layer.outputs[0].dtype == "fp16"
    assert layer.origins == (SITES[0], f"{SITES[0]}.input.dequantize")


def test_kinds_are_told_apart() -> None:
    found = layers_from_log(log(MOVES, SHAPE, *attention(fused=True), *attention(fused=False)))
    assert [layer.kind for layer in found] == ["movement", "shape", "attention", "product", "arithmetic", "product"]


def test_profiles_are_told_apart_by_what_states_them() -> None:
    later = product(SITES[0], "Int8", 4, " [profile 1]").replace("_myl0_", "_myl1_")
    beside = MOVES.replace("_myl0_", "_myl1_")
    found = layers_from_log(log(product(SITES[0], "Int8", 3), later, beside))
    assert [layer.profile for layer in found] == [0, 1, 1]


def inspector(layer: EngineLayer, *, old: bool) -> dict[str, object]:
    def tensors(found: tuple[object, ...]) -> list[dict[str, object]]:
        return [
            {"Name": item.name, "Dimensions": list(item.dims)}  # type: ignore[attr-defined]
            | (
                {"Format/Datatype": "Row major linear Int8 format"}
                if old
                else {"Datatype": "Int8", "Format": "Row major linear"}
            )
            for item in found
        ]

    return {
        "Name": layer.name,
        "LayerType": layer.type,
        "Inputs": tensors(layer.inputs),
        "Constants": tensors(layer.constants),
        "Outputs": tensors(layer.outputs),
        "TacticName": layer.tactic,
        "Metadata": "\x1e".join(f"[ONNX Layer: {origin}]" for origin in layer.origins),
    }


@pytest.mark.parametrize("old", [True, False])
def test_the_inspectors_json_says_the_same(old: bool) -> None:
    [layer] = layers_from_log(log(product(SITES[0], "Int8", 3)))
    [found] = layers_from_json(json.dumps({"Layers": [inspector(layer, old=old)]}))
    assert (found.kind, found.operands, found.origins, found.name) == (layer.kind, layer.operands, layer.origins, layer.name)


def test_what_lists_no_layers_is_refused() -> None:
    with pytest.raises(EngineBuildError, match="lists no layers"):
        layers_from_log(["nothing"])
    with pytest.raises(EngineBuildError, match="unknown form"):
        layers_from_log(["Layers:\nsomething else"])
    with pytest.raises(EngineBuildError, match="unknown form"):
        layers_from_log(["Layers:\nName: a, LayerType: gemm, Inputs: [ { Name: x, Sides: 3 }], Metadata: "])
    for text in ("{", "[]", '{"Layers": ["a name"]}', '{"Layers": []}'):
        with pytest.raises(EngineBuildError):
            layers_from_json(text)


def test_everything_covered_passes_every_floor(config: SwinV2Config) -> None:
    lines = [product(site, "Int8", place) for place, site in enumerate(SITES)]
    [found] = coverage(layers_from_log(log(*lines, *attention(fused=True), MOVES)), config)
    assert (found.int8_gemms, found.fused_attention, found.attention[0].tokens) == (4, 1, 64)
    assert found.layers == {"attention": 1, "product": 4, "convolution": 0, "arithmetic": 0, "movement": 1, "shape": 0}
    check_floors([found], 1.0, 1.0)


def test_a_floor_names_what_falls_short(config: SwinV2Config) -> None:
    lines = [product(site, "Half" if "fc1" in site else "Int8", place) for place, site in enumerate(SITES[:3])]
    [found] = coverage(layers_from_log(log(*lines, *attention(fused=False))), config)
    assert (found.int8_gemms, found.fused_attention) == (2, 0)
    with pytest.raises(
        EngineBuildError, match=r"2 of 4 linear layers .* 50\.0%; --require-int8-gemms asks for 75\.0%"
    ) as caught:
        check_floors([found], 0.75, None)
    assert "layers.0.blocks.0.mlp.fc1 (fp16 x fp16)" in str(caught.value)
    assert "layers.0.blocks.0.mlp.fc2 (no product found)" in str(caught.value)
    with pytest.raises(EngineBuildError, match=r"0 of 1 attentions are fused .*layers\.0\.blocks\.0 \(3 kernels\)"):
        check_floors([found], 0.5, 0.1)
    check_floors([found], 0.5, 0.0)
    check_floors([found], None, None)


def test_a_layer_that_was_split_is_not_one_int8_product(config: SwinV2Config) -> None:
    lines = [product(SITES[0], "Int8", place) for place in range(3)]
    [found] = coverage(layers_from_log(log(*lines)), config)
    assert (found.linear[0].kernels, found.linear[0].operands, found.linear[0].is_int8) == (3, "int8 x int8", False)
