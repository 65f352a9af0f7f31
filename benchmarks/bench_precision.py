"""What each FP32 island of the half-precision graphs is worth: drift of the bundled model with one taken away or one added.

Run it on held-out photographs of the data set the model was trained on:

    python benchmarks/bench_precision.py --val clothing10/val --out benchmarks/results/precision.json

Every graph is computed in float32 and rounded after every operator, so that no runtime's choice of kernels takes part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from reference_model.position_bias import BIAS_LIMIT, relative_coords_table
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.export import ExportSpec, export, precision
from swinv2_deploy.export.spec import HalfPrecision
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact
from swinv2_deploy.runtime.emulation import emulate

BATCH = 32
HALVES: tuple[HalfPrecision, ...] = ("fp16", "bf16")
Nodes = set[ir.Node]

PARTS: Mapping[str, Callable[[ir.Node], bool]] = {
    "softmax and its sums": lambda node: node.op_type == "Softmax" or str(node.name).endswith(".attn.logits"),
    "L2 norm and temperature": lambda node: "Lp" in node.op_type or str(node.name).endswith(".attn.q_scaled"),
    "pooling": lambda node: node.op_type == "ReduceMean",
    "classifier": lambda node: node.name == "head",
    "patch convolution": lambda node: node.op_type == "Conv",
    "LayerNorm": lambda node: node.op_type == "LayerNormalization",
    "residual sums": lambda node: ".residual" in str(node.name),
    "MLP": lambda node: ".mlp." in str(node.name),
    "product of queries and keys": lambda node: str(node.name).endswith(".attn.qk"),
    "product with values": lambda node: str(node.name).endswith(".attn.av"),
}


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val", type=Path, default=sample_folder("verify"), help="images to judge on")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(source_from_artifact(bundled_artifact()), ExportSpec(), Path(folder) / "fp32")
        result = measure(artifact, arguments.val)
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(artifact: ModelArtifact, val: Path) -> dict[str, Any]:
    """Every graph against FP32 on the same images."""
    images = np.stack([artifact.preprocessing(read_image(path)) for path in ImageFolder.open(val).paths])
    file = artifact.onnx_files["model"]
    expected = logits(ir.load(file), images)
    rows = []
    for kind in HALVES:
        for name, change in changes().items():
            chosen = precision._islands

            def islands(graph: ir.Graph, nodes: Any, half: HalfPrecision, change: Any = change, chosen: Any = chosen) -> Nodes:
                return change(set(nodes), chosen(graph, nodes, half))  # type: ignore[no-any-return]

            with mock.patch.object(precision, "_islands", islands):
                found = logits(emulate(precision.half_from_float32(ir.load(file), kind)), images)
            rows.append({"precision": kind, "islands": name} | drift(expected, found))
    return {"images": len(images), "onnxruntime": ort.__version__, "rows": rows, "position_bias": position_bias(artifact)}


def position_bias(artifact: ModelArtifact) -> dict[str, dict[str, float]]:
    """Largest error of the position-bias table: computed in half precision, and computed exactly and rounded once."""
    config, weights = artifact.config, load_model(artifact).state_dict()
    found = {}
    for kind in HALVES:
        dtype = precision.DTYPES[kind].numpy()

        def rounded(array: np.ndarray[Any, Any], dtype: Any = dtype) -> np.ndarray[Any, Any]:
            return array.astype(np.float32).astype(dtype).astype(np.float64)

        inside, once = 0.0, 0.0
        for name in [name.removesuffix(".0.bias") for name in weights if name.endswith("cpb_mlp.0.bias")]:
            first, bias, second = (weights[f"{name}.{key}"].double().numpy() for key in ("0.weight", "0.bias", "2.weight"))
            pretrained = config.pretrained_window_sizes[int(name.split(".")[1])] or config.window_size
            window = (config.window_size, config.window_size)
            coords = relative_coords_table(window, (pretrained, pretrained)).double().numpy()
            exact = BIAS_LIMIT / (1 + np.exp(-(np.maximum(coords @ first.T + bias, 0) @ second.T)))
            hidden = np.maximum(rounded(rounded(coords) @ rounded(first).T + rounded(bias)), 0)
            sigmoid = rounded(1 / (1 + np.exp(-rounded(hidden @ rounded(second).T))))
            inside = max(inside, float(np.abs(rounded(BIAS_LIMIT * sigmoid) - exact).max()))
            once = max(once, float(np.abs(rounded(exact) - exact).max()))
        found[kind] = {"computed_in_it": float(f"{inside:.2g}"), "rounded_once": float(f"{once:.2g}")}
    return found


def changes() -> dict[str, Callable[[Nodes, Nodes], Nodes]]:
    """Changes of the islands by name: functions of all nodes and the islands chosen."""

    def other(part: Callable[[ir.Node], bool]) -> Callable[[Nodes, Nodes], Nodes]:
        return lambda nodes, islands: islands ^ {node for node in nodes if part(node)}

    return {
        "as written": lambda nodes, islands: islands,
        **{f"other way: {name}": other(part) for name, part in PARTS.items()},
        "none": lambda nodes, islands: {node for node in islands if node.op_type == "Cast"},
    }


def logits(model: ir.Model, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(B, classes) of images (B, 3, H, W)."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([session.run(["logits"], {"pixel_values": part})[0] for part in parts])


def drift(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> dict[str, float]:
    """SQNR in dB, largest difference, images whose class changes."""
    error = np.square(found - expected).sum()
    return {
        "sqnr_db": round(float(10 * np.log10(np.square(expected).sum() / error)), 1),
        "max_abs": float(f"{np.abs(found - expected).max():.2g}"),
        "flips": int((found.argmax(1) != expected.argmax(1)).sum()),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| precision | islands | SQNR, dB | max abs | flips |", "|---|---|---|---|---|"]
    lines += ["| {precision} | {islands} | {sqnr_db} | {max_abs} | {flips} |".format(**row) for row in result["rows"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
