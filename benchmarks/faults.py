"""Faults that a verification has to find, each put into a copy of a healthy artifact whose hashes are right again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from swinv2_deploy.artifacts import LINEAGE, Lineage, ModelArtifact, WeightsOrigin, read_artifact, write_artifact

Edit = Callable[[ModelProto], None]
Array = NDArray[np.generic]

SHIFTED = "layers.0.blocks.1"
"""A block whose windows are shifted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: In words.
        file: ONNX file that it is in, without suffix; for ``edit``.
        edit: What it does to the graph.
        units: Names of the blocks or other parts of the network that are to blame; none for a fault outside of it.
        text: JSON file of the artifact to edit instead, and how.
        weights: Origin of the weights that the artifact claims instead.
    """

    name: str
    file: str = "model"
    edit: Edit | None = None
    units: tuple[str, ...] = ()
    text: tuple[str, Callable[[dict[str, object]], None]] | None = None
    weights: WeightsOrigin | None = None


def inject(fault: Fault, artifact: ModelArtifact, path: Path) -> ModelArtifact:
    """A copy of an artifact with a fault in it, under hashes that fit."""
    lineage = Lineage(stage="fault", spec={}, weights=fault.weights or artifact.lineage.weights)
    with write_artifact(path, lineage, force=True) as folder:
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LINEAGE, "reports", "engines"))
        if fault.edit is not None:
            proto = onnx.load(folder / f"onnx/{fault.file}.onnx")
            fault.edit(proto)
            onnx.save(proto, folder / f"onnx/{fault.file}.onnx")
        if fault.text is not None:
            name, change = fault.text
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            change(content)
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return read_artifact(path)


def stored(name: str, change: Callable[[Array], Array]) -> Edit:
    """Change a parameter."""

    def edit(proto: ModelProto) -> None:
        (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
        before = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(before.copy())).astype(before.dtype), name))

    return edit


def node_of(proto: ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    (found,) = (node for node in proto.graph.node if node.name == name)
    return found


def constant(proto: ModelProto, name: str, value: Array) -> str:
    """A new stored value."""
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def noisy(array: Array) -> Array:
    """A fifth of its spread added as noise."""
    noise = np.random.default_rng(0).standard_normal(array.shape)
    return array + 0.2 * array.astype(np.float64).std() * noise


def swapped_rows(array: Array) -> Array:
    """Two rows exchanged."""
    array[[0, len(array) // 2]] = array[[len(array) // 2, 0]]
    return array


def without_mask(proto: ModelProto) -> None:
    """Tokens of other regions are attended to."""
    node = node_of(proto, f"{SHIFTED}.attn.masked_logits")
    node.input[1] = constant(proto, "no_mask", np.zeros((), np.float32))


def without_bias(proto: ModelProto) -> None:
    """No position bias in one block."""
    node = node_of(proto, "layers.1.blocks.0.attn.logits")
    node.input[1] = constant(proto, "no_bias", np.zeros((), np.float32))


def softmax_over_queries(proto: ModelProto) -> None:
    """The wrong axis."""
    node = node_of(proto, "layers.1.blocks.1.attn.softmax")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", -2))


def approximate_gelu(proto: ModelProto) -> None:
    """The other formula."""
    node = node_of(proto, "layers.0.blocks.0.mlp.act")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("approximate", "tanh"))


def sum_for_length(proto: ModelProto) -> None:
    """The wrong norm."""
    node = node_of(proto, "layers.2.blocks.0.attn.q_normalized")
    for attribute in node.attribute:
        if attribute.name == "p":
            attribute.i = 1
            return
    node.attribute.append(helper.make_attribute("p", 1))


def smaller_window(proto: ModelProto) -> None:
    """As an export at a quarter of the size would have frozen it."""
    node_of(proto, "layers.1.windows.window").input[1] = constant(proto, "frozen_window", np.array([4, 4], np.int64))


def unshifted(proto: ModelProto) -> None:
    """As an export at a size with one window would have frozen it."""
    node = node_of(proto, "layers.1.windows.shift")
    node.input[1] = node.input[2]


def nan_in_padding(proto: ModelProto) -> None:
    """The row that padding tokens read is no number."""
    node = node_of(proto, "layers.0.blocks.0.attn.zero_row")
    node.input.append(constant(proto, "not_a_number", np.array(np.nan, np.float32)))


def zero_points_apart(proto: ModelProto) -> None:
    """What is read back is not what was written."""
    node = node_of(proto, "layers.1.blocks.0.attn.proj.input.dequantize")
    node.input[2] = constant(proto, "another_zero_point", np.array(40, np.int8))


def leak_between_rows(proto: ModelProto) -> None:
    """What is common to the batch gets into every image of it; nothing happens to an image alone."""
    (width,) = (tensor.dims[0] for tensor in proto.graph.initializer if tensor.name == "layers.1.blocks.0.norm1.weight")
    row = constant(proto, "leak.row", np.array([-1, width], np.int64))
    value = "layers.1.blocks.0.residual2"
    nodes = list(proto.graph.node)
    place = next(index for index, node in enumerate(nodes) if value in node.output)
    nodes[place].output[0] = "own"
    axis, both = (constant(proto, f"axes_{axes}", np.array(axes, np.int64)) for axes in ([1], [0, 1]))
    # The means of an image and of the whole batch are equal where the batch is the image.
    share = constant(proto, "share", np.array(0.2, np.float32))
    back = constant(proto, "rows", np.array([-1, 128], np.int64))
    added = [
        helper.make_node("Concat", [node_of(proto, "batch").output[0], row], ["image_shape"], name="leak.image_shape", axis=0),
        helper.make_node("Reshape", ["own", "image_shape"], ["by_image"], name="leak.by_image"),
        helper.make_node("ReduceMean", ["by_image", axis], ["image_mean"], name="leak.image_mean", keepdims=1),
        helper.make_node("ReduceMean", ["by_image", both], ["batch_mean"], name="leak.batch_mean", keepdims=1),
        helper.make_node("Sub", ["batch_mean", "image_mean"], ["others"], name="leak.others"),
        helper.make_node("Mul", ["others", share], ["some"], name="leak.some"),
        helper.make_node("Add", ["by_image", "some"], ["leaked"], name="leak.leaked"),
        helper.make_node("Reshape", ["leaked", back], [value], name="leak.rows"),
    ]
    # The shape is computed where the block begins, before its last node.
    ordered = nodes[: place + 1] + added + nodes[place + 1 :]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def metadata(key: str, change: Callable[[object], object]) -> Edit:
    """Change what a file says of itself."""

    def edit(proto: ModelProto) -> None:
        for entry in proto.metadata_props:
            if entry.key == f"swinv2_deploy.{key}":
                try:
                    entry.value = json.dumps(change(json.loads(entry.value)))
                except json.JSONDecodeError:
                    entry.value = str(change(entry.value))

    return edit


def reversed_channels(proto: ModelProto) -> None:
    """The file that takes photographs reads them as BGR."""
    reverse = constant(proto, "bgr", np.array([2, 1, 0], np.int64))
    first = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    for node in first:
        for place, name in enumerate(node.input):
            if name == "images":
                node.input[place] = "images_bgr"
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("Gather", ["images", reverse], ["images_bgr"], name="bgr", axis=3))
    proto.graph.node.extend(first)


def labels_swapped(proto: ModelProto) -> None:
    """Two names exchanged in what the file says of itself, as they are in the artifact."""

    def config(content: object) -> object:
        _swap_labels({"swinv2_deploy": content})
        return content

    def labels(content: object) -> object:
        found = list(content)  # type: ignore[call-overload]  # a list of JSON
        found[0], found[1] = found[1], found[0]
        return found

    metadata("config", config)(proto)
    metadata("labels", labels)(proto)


def cut_short(proto: ModelProto) -> None:
    """As a copy that ran out of disk."""
    del proto.graph.initializer[len(proto.graph.initializer) // 2 :]


def _swap_labels(content: dict[str, object]) -> None:
    labels = content["swinv2_deploy"]["labels"]  # type: ignore[index]  # of our own file
    labels[0], labels[1] = labels[1], labels[0]


def _normalization(content: dict[str, object]) -> None:
    content["image_mean"], content["image_std"] = [0.0] * 3, [1.0] * 3


def _bilinear(content: dict[str, object]) -> None:
    content["resample"] = 2


def faults() -> tuple[Fault, ...]:
    """Every fault, for the bundled model with ``model``, ``model_int8`` and ``model_from_images``."""
    scale = "layers.2.blocks.0.mlp.fc2.input.scale"
    return (
        Fault(
            "weights of fc1 with noise", edit=stored("layers.1.blocks.0.mlp.fc1.weight", noisy), units=("layers.1.blocks.0",)
        ),
        Fault(
            "one weight of qkv changed by 1",
            edit=stored("layers.0.blocks.0.attn.qkv.weight", _one),
            units=("layers.0.blocks.0",),
        ),
        Fault(
            "projection without its first head",
            edit=stored("layers.2.blocks.1.attn.proj.weight", _first_head),
            units=("layers.2.blocks.1",),
        ),
        Fault("bias of fc2 lost", edit=stored("layers.2.blocks.0.mlp.fc2.bias", np.zeros_like), units=("layers.2.blocks.0",)),
        Fault(
            "gain of norm1 times 1.5",
            edit=stored("layers.1.blocks.1.norm1.weight", lambda a: a * 1.5),
            units=("layers.1.blocks.1",),
        ),
        Fault(
            "bias of patch merging moved",
            edit=stored("layers.0.downsample.norm.bias", lambda a: a + 0.2),
            units=("layers.0.downsample",),
        ),
        Fault(
            "two rows of fc1 swapped in fc1 alone",
            edit=stored("layers.0.blocks.1.mlp.fc1.weight", swapped_rows),
            units=("layers.0.blocks.1",),
        ),
        Fault(
            "temperature halved",
            edit=stored("layers.0.blocks.0.attn.temperature", lambda a: a * 0.5),
            units=("layers.0.blocks.0",),
        ),
        Fault("shift mask missing", edit=without_mask, units=(SHIFTED,)),
        Fault("position bias missing", edit=without_bias, units=("layers.1.blocks.0",)),
        Fault("softmax over queries", edit=softmax_over_queries, units=("layers.1.blocks.1",)),
        Fault("approximate GELU", edit=approximate_gelu, units=("layers.0.blocks.0",)),
        Fault("queries normalized by their sum", edit=sum_for_length, units=("layers.2.blocks.0",)),
        Fault("window frozen from another size", edit=smaller_window),
        Fault("shift frozen from another size", edit=unshifted, units=("layers.1.blocks.1",)),
        Fault("NaN in padded windows", edit=nan_in_padding, units=("layers.0.blocks.0",)),
        Fault("images of a batch leak into each other", edit=leak_between_rows, units=("layers.1.blocks.0",)),
        Fault("classifier's rows swapped", edit=stored("head.weight", swapped_rows), units=("head",)),
        Fault("INT8: scale of one site times 8", "model_int8", stored(scale, lambda a: a * 8), ("layers.2.blocks.0",)),
        Fault("INT8: scale of one site over 8", "model_int8", stored(scale, lambda a: a / 8), ("layers.2.blocks.0",)),
        Fault(
            "INT8: scales of channels reversed",
            "model_int8",
            stored("layers.1.blocks.1.mlp.fc1.weight.scale", lambda a: a[::-1]),
            ("layers.1.blocks.1",),
        ),
        Fault(
            "INT8: weights of one layer shuffled",
            "model_int8",
            stored("layers.0.blocks.1.attn.qkv.weight.int8", _shuffled),
            ("layers.0.blocks.1",),
        ),
        Fault("INT8: zero points of a pair apart", "model_int8", zero_points_apart, ("layers.1.blocks.0",)),
        Fault("photographs read as BGR", "model_from_images", reversed_channels),
        Fault("labels swapped in the artifact", text=("config.json", _swap_labels)),
        Fault("no normalization in the artifact", text=("preprocessor_config.json", _normalization)),
        Fault("bilinear for bicubic in the artifact", text=("preprocessor_config.json", _bilinear)),
        Fault("file of other weights", edit=metadata("model_sha256", lambda _: "0" * 64)),
        Fault("labels swapped everywhere", edit=labels_swapped, text=("config.json", _swap_labels)),
        Fault("a file cut short", edit=cut_short),
        Fault("untrained weights", weights=WeightsOrigin(kind="untrained", source="seed 0")),
    )


def _one(array: Array) -> Array:
    array[3, 5] += 1
    return array


def _first_head(array: Array) -> Array:
    array[:, :32] = 0
    return array


def _shuffled(array: Array) -> Array:
    return np.random.default_rng(0).permutation(array, axis=0)
