"""Write a graph to a file without a second copy of its weights: tensors go from where they lie straight to the disk.

Serializing a model with the usual tools holds it two more times in memory. Here the graph is serialized without its weights, and
these are written behind it, or into one file beside it that several graphs may share.

Source: ONNX onnx/onnx.proto (field numbers) and docs/ExternalData.md; protocol buffers, "Encoding".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from swinv2_deploy.errors import ExportError
from swinv2_deploy.modeling.io import LARGEST_INLINE, SMALLEST_OUTSIDE

Bytes = NDArray[np.uint8]

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Fields ModelProto.graph, GraphProto.initializer and TensorProto.raw_data."""

PAGE = 4096
"""Tensors outside begin at multiples of this, so that a runtime can map them instead of reading them."""


class OnnxWriter:
    """Writes ONNX files, with the weights inside or in one file beside them.

    Args:
        data: File for the weights of all graphs written; None keeps them inside. The same content is stored there once.
    """

    def __init__(self, data: Path | None = None) -> None:
        self._data = data
        self._files = ExitStack()
        self._outside: BinaryIO | None = None
        self._places: dict[bytes, int] = {}

    def __enter__(self) -> OnnxWriter:
        if self._data is not None:
            self._outside = self._files.enter_context(self._data.open("wb"))
        return self

    def __exit__(self, *details: object) -> None:
        self._files.close()

    def write(self, model: ir.Model, path: Path) -> None:
        """Write one graph, after a check that it is valid ONNX. The model is left as it was.

        Raises:
            ExportError: When it is not valid.
        """
        initializers = dict(model.graph.initializers)
        parts = [part for value in initializers.values() for part in self._initializer(value)]
        model.graph.initializers.clear()
        try:
            proto = ir.to_proto(model)
        finally:
            model.graph.initializers.update(initializers)
        check_valid(proto, initializers.values())
        graph = proto.graph.SerializeToString(deterministic=True)
        proto.ClearField("graph")
        with path.open("wb") as file:
            file.write(proto.SerializeToString(deterministic=True))
            file.write(_prefix(GRAPH, len(graph) + sum(len(part) for part in parts)))
            file.write(graph)
            for part in parts:
                file.write(part)

    def _initializer(self, value: ir.Value) -> Sequence[bytes | memoryview]:
        """The field of one initializer, in parts."""
        tensor = value.const_value
        if tensor is None:
            return ()
        proto = onnx.TensorProto(name=value.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        content = _bytes(tensor)
        if self._outside is not None and content.nbytes >= SMALLEST_OUTSIDE:
            entries = {"location": Path(self._outside.name).name, "offset": self._place(content), "length": content.nbytes}
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, entry in entries.items():
                proto.external_data.add(key=key, value=str(entry))
            head = proto.SerializeToString(deterministic=True)
            return (_prefix(INITIALIZER, len(head)), head)
        head = proto.SerializeToString(deterministic=True)
        raw = _prefix(RAW_DATA, content.nbytes)
        return (_prefix(INITIALIZER, len(head) + len(raw) + content.nbytes), head, raw, content.data)

    def _place(self, content: Bytes) -> int:
        """Offset of content in the file of weights, where it is put unless it is there already."""
        if self._outside is None:
            raise ValueError("there is no file for weights; expected a writer that was made with one and entered")
        key = hashlib.sha256(content.data).digest()
        if key not in self._places:
            end = self._outside.tell()
            offset = -(-end // PAGE) * PAGE
            self._outside.write(bytes(offset - end))
            self._outside.write(content.data)
            self._places[key] = offset
        return self._places[key]


def write_alone(model: ir.Model, path: Path) -> None:
    """Write one graph that shares its weights with no other: large ones go into a file of its own beside it.

    Raises:
        ExportError: When it is not valid.
    """
    weights = [value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None]
    with OnnxWriter(path.with_name(f"{path.name}.data") if sum(weights) > LARGEST_INLINE else None) as writer:
        writer.write(model, path)


def check_valid(model: onnx.ModelProto, initializers: Iterable[ir.Value]) -> None:
    """Check a model without its initializers: small ones, which hold shapes, are looked at, large ones by type and shape alone.

    Raises:
        ExportError: When it is not valid ONNX.
    """
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    for value in initializers:
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes < SMALLEST_OUTSIDE:
            skeleton.graph.initializer.append(ir.to_proto(tensor))
        else:
            dims = [int(dim) for dim in tensor.shape.numpy()]
            skeleton.graph.input.append(onnx.helper.make_tensor_value_info(str(value.name), tensor.dtype.value, dims))
    try:
        onnx.checker.check_model(skeleton, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported graph is not valid ONNX: {error}. Please report the config.") from error


def _bytes(tensor: ir.TensorProtocol) -> Bytes:
    """The content of a tensor as it lies in memory, little-endian."""
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    little = array if array.dtype.byteorder in "=<|" and np.little_endian else array.astype(array.dtype.newbyteorder("<"))
    return little.view(np.uint8)


def _prefix(field: int, length: int) -> bytes:
    """Key and length before the content of a field."""
    return bytes([*_varint(field << 3 | 2), *_varint(length)])


def _varint(number: int) -> Iterator[int]:
    while number >= 128:
        yield number & 127 | 128
        number >>= 7
    yield number
