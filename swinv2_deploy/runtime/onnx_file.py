"""What an ONNX file says about itself, read without trusting it: no weights are loaded and no other file is opened."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from reference_model.config import ConfigError, SwinV2Config
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import RunnerError, SpecError
from swinv2_deploy.runtime.masks import MASK_INPUT
from swinv2_deploy.runtime.runner import Precision, Rest, Takes, output_names

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

PREFIX = "swinv2_deploy."
SCHEMA = 1

FROM_IMAGES = "_from_images"
"""What the names of files that take photographs end in. ``uint8`` in a name is taken: there it is the form of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxFacts:
    """Metadata of an exported ONNX file.

    Attributes:
        config: Architecture.
        precision: Number format of the weights.
        resolutions: Sizes the graph is right at.
        model_sha256: Hash of the weights file it was exported from.
        values: Every entry by name without its prefix.
        size_bytes: The file and its external data.
        external: Names of the files beside it that hold weights.
        takes: Its input: normalized pixels, or photographs as they are decoded.
        rest: Number format of what is not INT8; that of the whole file where nothing is.
        pinned: The one batch, height and width it is for, where ``pin`` wrote it.
    """

    config: SwinV2Config
    precision: Precision
    resolutions: ResolutionRange
    model_sha256: str
    values: Mapping[str, Any]
    size_bytes: int
    external: tuple[str, ...] = ()
    takes: Takes = "pixel_values"
    rest: Rest = "fp32"
    pinned: tuple[int, int, int] | None = None


def read_facts(path: Path) -> OnnxFacts:
    """Check an ONNX file and read its metadata.

    Raises:
        RunnerError: When the file is missing, damaged, not an export of this project, or wants files from elsewhere.
    """
    model = _parse(path)
    external = check_external_data(model, path)
    values = {
        entry.key.removeprefix(PREFIX): _value(entry.value) for entry in model.metadata_props if entry.key.startswith(PREFIX)
    }
    if values.get("schema") != SCHEMA:
        raise RunnerError(
            f"{path} has no {PREFIX}schema = {SCHEMA} in its metadata, so its preprocessing and sizes are unknown; expected a "
            "file that this version's 'swinv2-deploy export' or 'quantize' wrote."
        )
    try:
        config = SwinV2Config.from_dict(values["config"])
        resolutions = ResolutionRange.from_dict(values["resolutions"])
        precision, model_sha256 = str(values["precision"]), str(values["model_sha256"])
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError, SpecError) as error:
        raise RunnerError(f"The metadata of {path} is incomplete ({error}); export it again.") from error
    if precision not in get_args(Precision):
        raise RunnerError(f"{path} has precision {precision!r}; expected one of {list(get_args(Precision))}. Export it again.")
    takes = values.get("input", "pixel_values")
    if takes not in get_args(Takes):
        raise RunnerError(f"{path} says it takes {takes!r}; expected one of {list(get_args(Takes))}. Export it again.")
    if takes == "images" and config.task == "masked_image_modeling":
        raise RunnerError(
            f"{path} says it takes photographs and holds a masked image model, which takes a mask beside its pixels; export it "
            "again."
        )
    rest = values.get("rest", "fp32" if precision in ("int8", "uint8") else precision)
    if rest not in get_args(Rest):
        raise RunnerError(
            f"{path} says that what is not INT8 is {rest!r}; expected one of {list(get_args(Rest))}. Make it again."
        )
    _check_interface(model.graph, config, path, takes)
    return OnnxFacts(
        config=config,
        precision=cast(Precision, precision),
        resolutions=resolutions,
        model_sha256=model_sha256,
        values=values,
        size_bytes=path.stat().st_size + sum(external.values()),
        external=tuple(external),
        takes=takes,
        rest=rest,
        pinned=_pinned(values.get("pinned"), path),
    )


def _pinned(stated: Any, path: Path) -> tuple[int, int, int] | None:
    if stated is None:
        return None
    if not isinstance(stated, list) or len(stated) != 3 or not all(type(side) is int and side > 0 for side in stated):
        raise RunnerError(f"{path} says it is pinned to {stated!r}; expected a batch, a height and a width. Pin it again.")
    return stated[0], stated[1], stated[2]


def append_metadata(path: Path, values: Mapping[str, Any]) -> None:
    """Add entries, as JSON, to the metadata of a file that is being made; its weights are neither read nor moved.

    A message of protocol buffers may be written in parts, one behind the other, and reads as one.
    """
    import onnx

    part = onnx.ModelProto()
    for name, value in values.items():
        part.metadata_props.add(key=f"{PREFIX}{name}", value=value if isinstance(value, str) else json.dumps(value))
    with path.open("ab") as file:
        file.write(part.SerializeToString())


def check_external_data(model: ModelProto, path: Path) -> dict[str, int]:
    """Bytes of each file that holds external tensors of the model, after checking that it is a file of its own folder.

    A path that leads out, a link, or a hard link (a second name of a file elsewhere) would let a model read any file.

    Raises:
        RunnerError: When one is missing, elsewhere, a link, or too short.
    """
    sizes: dict[str, int] = {}
    for tensor in _tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in sizes:
            sizes[location] = _external_size(path, location)
        try:
            start, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
        except ValueError as error:
            raise RunnerError(f"{path} says {tensor.name} lies at {entries}; expected numbers. Export it again.") from error
        if min(start, length) < 0 or start + length > sizes[location]:
            raise RunnerError(
                f"{path.parent / location} has {sizes[location]} bytes and {tensor.name} is said to lie at {start} to "
                f"{start + length}; the file was cut off, so export it again."
            )
    return sizes


def _external_size(path: Path, location: str) -> int:
    target = path.parent / location
    parts = Path(location).parts
    if not parts or Path(location).is_absolute() or ".." in parts or "\\" in location:
        raise RunnerError(f"{path} wants weights from {location!r}, outside its own folder; such a file is not loaded.")
    try:
        inside = target.resolve(strict=True).is_relative_to(path.parent.resolve())
        status = os.lstat(target)
    except OSError as error:
        raise RunnerError(f"{path} needs its weights in {target}, which not readable ({error.strerror}); copy both.") from error
    if not inside or not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise RunnerError(f"{target} is a link or leads out of its folder; copy the file itself there and try again.")
    return status.st_size


def _parse(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no type information

    if not path.is_file():
        raise RunnerError(f"There is no ONNX file at {path}; make one with 'swinv2-deploy export'.")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise RunnerError(f"{path} is no ONNX file or was cut off ({error}); export it again.") from error
    if not model.graph.node:
        raise RunnerError(f"{path} holds no ONNX graph; expected a file that 'swinv2-deploy export' wrote.")
    return model


def _check_interface(graph: GraphProto, config: SwinV2Config, path: Path, takes: Takes) -> None:
    import onnx

    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    found = [f"{value.name} {_type_text(value)}" for value in inputs]
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if inputs else []
    masked = config.task == "masked_image_modeling"
    if takes == "images":
        place, channels, kind, layout = 3, 3, onnx.TensorProto.UINT8, "uint8 (batch, height, width, 3)"
    else:
        place, channels, kind = 1, config.num_channels, onnx.TensorProto.FLOAT
        layout = f"float32 (batch, {channels}, height, width)"
    expected = {str(takes): kind} | ({MASK_INPUT: onnx.TensorProto.BOOL} if masked else {})
    types = {value.name: value.type.tensor_type.elem_type for value in inputs}
    if list(types.items()) != list(expected.items()) or len(shape) != 4 or shape[place] != channels:
        more = f" and {MASK_INPUT} bool (batch, patches)" if masked else ""
        raise RunnerError(
            f"{path} takes {', '.join(found) or 'no input'}; expected {'two inputs' if masked else 'one input'}, {takes} "
            f"{layout}{more}. Export it again."
        )
    names = tuple(value.name for value in graph.output)
    if names != output_names(config):
        raise RunnerError(
            f"{path} returns {list(names)}; a model for {config.task} returns {list(output_names(config))}. Export it again."
        )


def _type_text(value: Any) -> str:
    import onnx

    kind = value.type.tensor_type
    sides = [dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} ({', '.join(sides)})"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    pending: list[Any] = [model.graph, *model.functions]
    pending += [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    while pending:
        graph = pending.pop()
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                pending += [inner for inner in (attribute.g, *attribute.graphs) if inner.node]
