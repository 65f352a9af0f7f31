"""The layer report: what the compiler made of a network, as JSON for machines and as a page with a picture for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference_model.config import SwinV2Config
from swinv2_deploy.engine.coverage import Coverage, LinearLayer
from swinv2_deploy.engine.layers import EngineLayer
from swinv2_deploy.engine.profiles import Profile

TEMPLATE = "report.html.jinja"
COLUMNS = ("attn.qkv", "attention", "attn.proj", "mlp.fc1", "mlp.fc2", "downsample.reduction")
"""Parts of a block in the picture; the last one closes a stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """What became of a network.

    Attributes:
        name: Name of the engine.
        onnx: Name of the file it was built from.
        backend: Flavor and version of the compiler.
        targets: GPUs it was built for.
        precision: Number format of the file, with that of its rest.
        profiles: Batches and sizes it was built for.
        coverage: What each profile covers.
        layers: Every layer.
        plan_bytes: Size of the engine's file.
        activation_bytes: Memory for activations at the largest shape of each profile.
        weight_bytes: Memory for weights on the GPU, where the builder states it.
        seconds: Time the build took.
    """

    name: str
    onnx: str
    backend: str
    targets: tuple[str, ...]
    precision: str
    profiles: tuple[Profile, ...]
    coverage: tuple[Coverage, ...]
    layers: tuple[EngineLayer, ...]
    plan_bytes: int
    activation_bytes: tuple[int, ...]
    weight_bytes: int | None
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The figures without the layers, in plain JSON types."""
        return {
            "name": self.name,
            "onnx": self.onnx,
            "backend": self.backend,
            "targets": list(self.targets),
            "precision": self.precision,
            "plan_bytes": self.plan_bytes,
            "weight_bytes": self.weight_bytes,
            "seconds": self.seconds,
            "profiles": [self._profile(place) for place in range(len(self.profiles))],
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain JSON types."""
        return self.summary() | {"layers": [layer.to_dict() for layer in self.layers]}

    def _profile(self, place: int) -> dict[str, Any]:
        profile = self.profiles[place]
        covered = next((item for item in self.coverage if item.profile == place), None)
        known = place < len(self.activation_bytes)
        return {
            "min": list(profile.min),
            "opt": list(profile.opt),
            "max": list(profile.max),
            "activation_bytes": self.activation_bytes[place] if known else None,
            "coverage": covered.to_dict() if covered else None,
        }


def write_page(report: LayerReport, config: SwinV2Config, path: Path) -> None:
    """Write the report as one HTML file that needs nothing beside it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("swinv2_deploy.engine", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mib"] = lambda count: "unknown" if count is None else f"{count / 2**20:,.1f} MiB"
    page = environment.get_template(TEMPLATE).render(
        report=report,
        summary=report.summary(),
        columns=COLUMNS,
        grids=[block_rows(covered, config) for covered in report.coverage],
    )
    path.write_text(page, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of a block in the picture.

    Attributes:
        label: Types that are multiplied, or how many kernels there are.
        state: ``int8``, ``half``, ``fp32``, ``parted`` or ``missing``, which chooses the color.
        title: The whole story.
    """

    label: str
    state: str
    title: str


def block_rows(covered: Coverage, config: SwinV2Config) -> list[tuple[str, list[Cell | None]]]:
    """Rows of the picture: the name of a block and a cell for each part, None where a block has no such part."""
    linear: Mapping[str, LinearLayer] = {layer.name: layer for layer in covered.linear}
    attention = {block.name: block for block in covered.attention}
    rows: list[tuple[str, list[Cell | None]]] = []
    for stage, depth in enumerate(config.running_depths):
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            cells: list[Cell | None] = []
            for column in COLUMNS:
                if column == "attention":
                    found = attention[block]
                    kernels = len(found.kernels)
                    state = "fused" if found.fused else "parted"
                    label = "fused" if found.fused else f"{kernels} kernels"
                    cells.append(Cell(label, state, f"{block}: {', '.join(found.kernels)}"))
                elif column == "downsample.reduction":
                    last = number == depth - 1
                    cells.append(_cell(linear.get(f"layers.{stage}.{column}")) if last else None)
                else:
                    cells.append(_cell(linear.get(f"{block}.{column}")))
            rows.append((f"{stage + 1}.{number + 1}", cells))
    return rows


def _cell(layer: LinearLayer | None) -> Cell | None:
    if layer is None:
        return None
    if not layer.kernels:
        return Cell("not found", "missing", f"{layer.name}: no product of the engine comes from it")
    first = layer.operands.split(" ")[0]
    state = "int8" if layer.is_int8 else "half" if first in ("fp16", "bf16") else "fp32" if first == "fp32" else "parted"
    label = layer.operands.replace(f"{first} x {first}", first)
    return Cell(label, state, f"{layer.name}: {layer.operands} to {layer.output}, kernels: {layer.kernels}")
