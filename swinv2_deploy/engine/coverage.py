"""What of a network became what it was meant to become: INT8 products, fused attention, and what was added to move data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reference_model.config import SwinV2Config
from swinv2_deploy.engine.layers import KINDS, EngineLayer
from swinv2_deploy.errors import EngineBuildError
from swinv2_deploy.modeling.sites import quantization_sites

PARTS = ("attn.qk", "attn.softmax", "attn.av")
"""ONNX nodes of a block that one fused attention kernel computes."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """What became of one linear layer.

    Attributes:
        name: Its name in the model.
        kernels: Products in the engine that came from it; more than one where it was split.
        operands: Types that are multiplied, such as ``int8 x int8``; empty where no product was found.
        output: Type of the result.
    """

    name: str
    kernels: int
    operands: str
    output: str

    @property
    def is_int8(self) -> bool:
        """Whether integers are multiplied, in one kernel."""
        return self.kernels == 1 and self.operands == "int8 x int8"


@dataclass(frozen=True, slots=True)
class BlockAttention:
    """What became of the attention of one block.

    Attributes:
        name: Block.
        kernels: Names of the layers that compute products and softmax; one where they are fused.
        fused: Whether one kernel computes all of it.
        tokens: Tokens of a window, where the kernel's shapes tell.
    """

    name: str
    kernels: tuple[str, ...]
    fused: bool
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """What one optimization profile of an engine covers.

    Attributes:
        profile: Its number.
        linear: Every linear layer of the blocks and of patch merging.
        attention: Attention of every block.
        layers: Layers by kind.
    """

    profile: int
    linear: tuple[LinearLayer, ...]
    attention: tuple[BlockAttention, ...]
    layers: dict[str, int]

    @property
    def int8_gemms(self) -> int:
        """Linear layers that multiply integers in one kernel."""
        return sum(layer.is_int8 for layer in self.linear)

    @property
    def fused_attention(self) -> int:
        """Blocks whose attention is one kernel."""
        return sum(block.fused for block in self.attention)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the counts."""
        return asdict(self) | {"int8_gemms": self.int8_gemms, "fused_attention": self.fused_attention}


def coverage(layers: Iterable[EngineLayer], config: SwinV2Config) -> tuple[Coverage, ...]:
    """Find every linear layer and every attention of a model among the layers of its engine, profile by profile.

    Args:
        layers: Layers of the engine.
        config: Architecture of the model.
    """
    by_profile: dict[int, list[EngineLayer]] = {}
    for layer in layers:
        by_profile.setdefault(layer.profile, []).append(layer)
    blocks = [f"layers.{stage}.blocks.{block}" for stage, depth in enumerate(config.running_depths) for block in range(depth)]
    return tuple(
        Coverage(
            profile=profile,
            linear=tuple(_linear(name, found) for name in quantization_sites(config, "linear")),
            attention=tuple(_attention(name, found) for name in blocks),
            layers={kind: Counter(layer.kind for layer in found)[kind] for kind in KINDS},
        )
        for profile, found in sorted(by_profile.items())
    )


def check_floors(found: Sequence[Coverage], int8_gemms: float | None, fused_attention: float | None) -> None:
    """Refuse an engine that covers less than was asked for, in any of its profiles.

    Args:
        found: What it covers.
        int8_gemms: Smallest share of the linear layers that must be INT8 products; None asks for nothing.
        fused_attention: The same for blocks whose attention must be one kernel.

    Raises:
        EngineBuildError: With the names of what is missing.
    """
    for covered in found:
        plain = [f"{layer.name} ({_what(layer)})" for layer in covered.linear if not layer.is_int8]
        parted = [f"{block.name} ({len(block.kernels)} kernels)" for block in covered.attention if not block.fused]
        _check("linear layers are INT8 products", covered, plain, len(covered.linear), int8_gemms, "--require-int8-gemms")
        _check("attentions are fused", covered, parted, len(covered.attention), fused_attention, "--require-fused-attention")


def _what(layer: LinearLayer) -> str:
    if not layer.kernels:
        return "no product found"
    return layer.operands if layer.kernels == 1 else f"{layer.kernels} kernels"


def _check(what: str, covered: Coverage, missing: list[str], total: int, floor: float | None, option: str) -> None:
    done = total - len(missing)
    # A share of counted things: half a one is no shortfall.
    if floor is None or done >= floor * total - 1e-9:
        return
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    raise EngineBuildError(
        f"{done} of {total} {what} in profile {covered.profile}, {done / total:.1%}; {option} asks for {floor:.1%}. Not "
        f"so: {', '.join(missing[:10])}{more}. The engine was not kept; compile an INT8 file with an FP16 rest, or lower the floor."
    )


def _linear(name: str, layers: list[EngineLayer]) -> LinearLayer:
    found = [layer for layer in layers if layer.kind == "product" and name in layer.origins]
    operands = " / ".join(dict.fromkeys(layer.operands for layer in found))
    outputs = " / ".join(dict.fromkeys(layer.outputs[0].dtype for layer in found if layer.outputs))
    return LinearLayer(name, len(found), operands, outputs)


def _attention(name: str, layers: list[EngineLayer]) -> BlockAttention:
    parts = {f"{name}.{part}" for part in PARTS}
    found = [layer for layer in layers if parts & set(layer.origins) and layer.kind in ("attention", "product", "arithmetic")]
    fused = [layer for layer in found if layer.kind == "attention" and parts <= set(layer.origins)]
    whole = len(fused) == 1 and not any(layer.kind == "product" for layer in found)
    kernels = tuple(layer.name for layer in (fused if whole else found))
    return BlockAttention(name, kernels, whole, _tokens(fused[0]) if whole else None)


def _tokens(layer: EngineLayer) -> int | None:
    """Tokens of a window: queries are (windows, tokens, channels of a head) in a fused kernel."""
    queries = [tensor.dims for tensor in layer.inputs if len(tensor.dims) >= 3 and tensor.dims[-2] > 0]
    return queries[0][-2] if queries else None
