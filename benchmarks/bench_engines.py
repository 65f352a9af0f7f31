"""What TensorRT-RTX makes of the exported graphs, without a GPU: build time, sizes, memory, INT8 products and fused attention.

    python benchmarks/bench_engines.py --out benchmarks/results/engines.json

Weights are random and the INT8 ranges set by hand: neither matters to what kernels are chosen. Dynamic profiles are built a second
time at their largest shape alone, to see what the freedom costs in memory. Rows of an earlier call are kept: --only takes
parts of the names of cases, --forms of the number formats.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.rows import known_rows
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2, build_model
from reference_model.variants import VARIANTS
from swinv2_deploy import __version__
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.engine.build import build
from swinv2_deploy.engine.coverage import Coverage, coverage
from swinv2_deploy.engine.layers import layers_from_log
from swinv2_deploy.engine.profiles import Profile
from swinv2_deploy.engine.spec import EngineSpec
from swinv2_deploy.export.precision import half_from_float32
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.export.write import OnnxWriter
from swinv2_deploy.modeling.sites import Policy, quantization_sites, watched_inputs
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact
from swinv2_deploy.quantize.qdq import insert_qdq
from swinv2_deploy.runtime.tensorrt import Backend, choose_backend

FORMS = ("fp32", "fp16", "bf16", "int8+fp16", "int8 attention+fp16")
"""The last one also quantizes both products of every attention."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model, the sizes its graph is made for, and the profile it is compiled for."""

    name: str
    variant: str
    sizes: ResolutionRange
    profile: Profile


def cases() -> list[Case]:
    """Static, dynamic batch, and everything dynamic."""
    tiny, tiny16 = "swinv2-tiny-patch4-window8-256", "swinv2-tiny-patch4-window16-256"
    base = "swinv2-base-patch4-window12to24-192to384-22kto1k-ft"
    free = ResolutionRange(min=(128, 128), opt=(256, 256), max=(512, 512))
    wide = Profile(min=(1, 128, 128), opt=(4, 256, 256), max=(8, 512, 512))
    large = ResolutionRange(min=(192, 192), opt=(384, 384), max=(512, 512))
    larger = replace(large, min=(384, 384))
    found = [
        Case(
            "bundled, dynamic",
            "",
            ResolutionRange(min=(32, 32), opt=(128, 128), max=(512, 512)),
            replace(wide, opt=(1, 128, 128)),
        ),
    ]
    for name, variant in (("tiny window 8", tiny), ("tiny window 16", tiny16)):
        found += [
            Case(f"{name}, static", variant, one(256), fixed(1, 256)),
            Case(f"{name}, dynamic batch", variant, one(256), Profile(min=(1, 256, 256), opt=(4, 256, 256), max=(8, 256, 256))),
            Case(f"{name}, dynamic", variant, free, wide),
        ]
    return [
        *found,
        Case("base window 24, static", base, one(384), fixed(1, 384)),
        Case("base window 24, dynamic", base, large, Profile(min=(1, 192, 192), opt=(1, 384, 384), max=(2, 512, 512))),
        Case("base window 24, from 384 px", base, larger, Profile(min=(1, 384, 384), opt=(1, 384, 384), max=(2, 512, 512))),
    ]


def one(side: int) -> ResolutionRange:
    """A single square size in px."""
    return ResolutionRange(min=(side, side), opt=(side, side), max=(side, side))


def fixed(batch: int, side: int) -> Profile:
    """A single shape."""
    return Profile(min=(batch, side, side), opt=(batch, side, side), max=(batch, side, side))


def main() -> None:
    """Build everything, print the table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of the names of cases, separated by semicolons")
    parser.add_argument("--forms", default=";".join(FORMS), help="number formats, separated by semicolons")
    parser.add_argument("--backend", default="tensorrt-rtx")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    backend = choose_backend(arguments.backend)
    facts = {"backend": backend.flavor, "version": backend.version, "processor": platform.processor() or platform.machine()}
    rows = {(row["case"], row["form"]): row for row in known_rows(arguments.out, facts)}
    print("| model | form | build, s | plan, MiB | weights, MiB | memory, MiB | over fixed | INT8 | fused | layers | moves |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case in cases():
        if not any(part in case.name for part in arguments.only.split(";")):
            continue
        for row in measured(case, arguments.forms.split(";"), backend):
            rows[row["case"], row["form"]] = row
            if arguments.out:
                arguments.out.write_text(json.dumps(facts | {"rows": list(rows.values())}, indent=2) + "\n", encoding="utf-8")
            print(line(row), flush=True)


def measured(case: Case, forms: list[str], backend: Backend) -> Iterator[dict[str, Any]]:
    """A row for every number format of a case."""
    model = model_of(case.variant)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    graph = SwinGraph(model.config, weights, case.sizes).build(__version__)
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            path = Path(folder) / "model.onnx"
            with OnnxWriter() as writer:
                writer.write(in_form(graph.clone(), form, model.config), path)
            built = build(backend, path, model.config, (case.profile,), EngineSpec())
            [found] = coverage(layers_from_log(built.messages), model.config)
            pinned = None
            if case.profile.min != case.profile.max:
                pinned = build(backend, path, model.config, (case.profile.at_max,), EngineSpec()).activation_bytes[0]
            yield {
                "case": case.name,
                "form": form,
                "profile": str(case.profile),
                "seconds": built.seconds,
                "plan_bytes": len(built.plan),
                "weight_bytes": built.weight_bytes,
                "activation_bytes": built.activation_bytes[0],
                "activation_bytes_at_max_alone": pinned,
                "tokens": sorted({block.tokens for block in found.attention if block.tokens}),
                **kernels(found),
            }


def model_of(variant: str) -> SwinV2:
    """The bundled model, or a published one with random weights."""
    return build_model(VARIANTS[variant].config) if variant else source_from_artifact(bundled_artifact()).model


def in_form(graph: ir.Model, form: str, config: SwinV2Config) -> ir.Model:
    """The graph in a number format."""
    if form.startswith("int8"):
        policy: Policy = "attention" if "attention" in form else "linear"
        insert_qdq(graph, dict.fromkeys(watched_inputs(quantization_sites(config, policy)), 4.0))
    half = form.rpartition("+")[2]
    return graph if half == "fp32" else half_from_float32(graph, "bf16" if half == "bf16" else "fp16")


def kernels(found: Coverage) -> dict[str, Any]:
    """What became of products and attention."""
    return {
        "linear": len(found.linear),
        "int8_gemms": found.int8_gemms,
        "operands": sorted({layer.operands for layer in found.linear}),
        "blocks": len(found.attention),
        "fused_attention": found.fused_attention,
        "not_fused": [block.name for block in found.attention if not block.fused],
        "layers": found.layers,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    mib = {
        name: "-" if row[name] is None else f"{row[name] / 2**20:.1f}"
        for name in ("plan_bytes", "weight_bytes", "activation_bytes")
    }
    pinned = row["activation_bytes_at_max_alone"]
    over = f"{row['activation_bytes'] / pinned:.2f}" if pinned else "-"
    cells = [row["case"], row["form"], f"{row['seconds']:.1f}", *mib.values(), over]
    cells += [f"{row['int8_gemms']}/{row['linear']}", f"{row['fused_attention']}/{row['blocks']}"]
    return "| " + " | ".join([*cells, str(sum(row["layers"].values())), str(row["layers"]["movement"])]) + " |"


if __name__ == "__main__":
    main()
