"""What a compiler made of a network, layer by layer: one data model for the builder's log and for the engine inspector's JSON.

Deserializing an engine, and with it the inspector, needs a GPU. The builder's detailed log needs none and says the same: it ends
with every layer, the tensors it reads and writes with their types, and the ONNX nodes it came from.

Source: TensorRT-RTX 1.7.1, message "Layers:" of a build with detailed profiling verbosity; TensorRT documentation, "Engine
Inspector", for the JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from swinv2_deploy.errors import EngineBuildError

Kind = Literal["attention", "product", "convolution", "arithmetic", "movement", "shape"]
"""What a layer is for. ``movement`` computes nothing: copies, reformats, casts and transpositions."""

LISTING = "Layers:\n"
"""How the message with all layers begins."""

KINDS: tuple[Kind, ...] = ("attention", "product", "convolution", "arithmetic", "movement", "shape")

TYPES = {
    "Float": "fp32",
    "Half": "fp16",
    "BFloat16": "bf16",
    "Int8": "int8",
    "Int32": "int32",
    "Int64": "int64",
    "Bool": "bool",
    "UInt8": "uint8",
    "FP8": "fp8",
}
"""Spelling of a type in both sources."""

FORMATS = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "Int8": "int8", "Int32": "int32", "Int64": "int64", "Bool": "bool"}
"""How older inspectors write a type, inside the name of a format."""

PRODUCTS = ("gemm", "matrix_multiply", "MatrixMultiply", "CaskGemmMatrixMultiply", "fc", "FullyConnected")
CONVOLUTIONS = ("correlation", "CaskConvolution", "Convolution")
SHAPES = ("shape_call", "ShapeHostToDevice", "ShapeDeviceToHost", "Constant")
MOVEMENTS = ("Reformat", "NoOp", "Slice", "Shuffle", "Concatenation", "copy")

ARITHMETIC_WORDS = re.compile(
    r"Mul|Add|Sub|Div|Sqrt|Mean|Sum|Max|Min|Erf|Exp|Log|Roun|Pow|Tanh|Sigm|Relu|Fc|Soft|Rms|Norm|Prod|Abs|Gelu"
)
"""Parts of a generated kernel's name that stand for arithmetic; what is left (Resh, Tran, Conc, Slic, Cast, ...) moves values."""

STATED_PROFILE = r" \[profile (\d+)\]"

INTEGER_ONLY = ("int32", "int64", "bool")


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """A tensor between layers.

    Attributes:
        name: As the compiler calls it.
        dims: Sides; -1 where they depend on the input.
        dtype: ``fp32``, ``fp16``, ``int8`` and so on; the compiler's word where it is another.
    """

    name: str
    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLayer:
    """One layer of an engine, which is one kernel in most cases.

    Attributes:
        name: As the compiler calls it.
        type: The compiler's kind of layer.
        kind: What it is for.
        tactic: Name of the kernel, where one is stated.
        inputs: Tensors it reads.
        constants: Weights it reads.
        outputs: Tensors it writes.
        origins: Names of the ONNX nodes it came from.
        profile: Number of the optimization profile it belongs to.
    """

    name: str
    type: str
    kind: Kind
    tactic: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    origins: tuple[str, ...]
    profile: int = 0

    @property
    def operands(self) -> str:
        """Types of the two tensors that a product multiplies, the bias and scales left out: ``int8 x int8``."""
        wide = [tensor for tensor in (*self.inputs, *self.constants) if len(tensor.dims) > 1 and 1 not in tensor.dims[-2:-1]]
        return " x ".join(tensor.dtype for tensor in wide[:2])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def layers_from_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Layers that a build with detailed verbosity logged.

    Args:
        messages: All messages of one build.

    Raises:
        EngineBuildError: When no message lists them, or a line has another form.
    """
    listing = [message for message in messages if message.startswith(LISTING)]
    if not listing:
        raise EngineBuildError(
            "The builder's log lists no layers, so what became of the network is not known; expected a message 'Layers:'. Use a "
            "version of TensorRT that writes it, or compile without a floor and without a report."
        )
    lines = listing[-1].split("\n\n")[0].splitlines()[1:]
    return _layers([_fields(line) for line in lines])


def layers_from_json(text: str) -> tuple[EngineLayer, ...]:
    """Layers that an engine inspector wrote as JSON.

    Raises:
        EngineBuildError: When the text is something else, or holds names alone.
    """
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineBuildError(f"The engine inspector's text is not the JSON of an engine: {error!r}.") from error
    if not found or not all(isinstance(layer, dict) for layer in found):
        raise EngineBuildError(
            "The engine knows the names of its layers alone; expected one built with detailed profiling verbosity. Compile again."
        )
    return _layers(found)


def _layers(listed: Sequence[Mapping[str, Any]]) -> tuple[EngineLayer, ...]:
    """The layers with their profiles: some names state theirs, and layers of one compiled part of the network share it."""
    profiles: dict[str, int] = {}
    for fields in listed:
        stated = re.search(STATED_PROFILE, str(fields["Name"]))
        if stated:
            profiles[_part(fields)] = int(stated[1])
    return tuple(_layer(fields, profiles.get(_part(fields), 0)) for fields in listed)


def _part(fields: Mapping[str, Any]) -> str:
    found = re.search(r"_(myl\d+)_\d+$", str(fields["Name"]))
    return found[1] if found else str(fields["Name"])


def _layer(fields: Mapping[str, Any], profile: int) -> EngineLayer:
    inputs, constants, outputs = (_tensors(fields.get(name) or ()) for name in ("Inputs", "Constants", "Outputs"))
    name, kind, tactic = str(fields["Name"]), str(fields.get("LayerType", "")), str(fields.get("TacticName") or "")
    origins = re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(fields.get("Metadata") or ""))
    return EngineLayer(
        name=name,
        type=kind,
        kind=_kind(kind, f"{name} {tactic}", (*inputs, *outputs)),
        tactic=tactic,
        inputs=inputs,
        constants=constants,
        outputs=outputs,
        origins=tuple(dict.fromkeys(re.sub(STATED_PROFILE, "", origin) for origin in origins)),
        profile=profile,
    )


def _kind(kind: str, name: str, tensors: tuple[EngineTensor, ...]) -> Kind:
    if "_mha" in name or "fmha" in name.lower():
        return "attention"
    if kind in PRODUCTS or (kind == "runtime_fusion" and "_Fc" in name):
        return "product"
    if kind in CONVOLUTIONS:
        return "convolution"
    if kind in SHAPES or (tensors and all(tensor.dtype in INTEGER_ONLY for tensor in tensors)):
        return "shape"
    generated = re.search(r"__myl_([A-Za-z]+)", name)
    if kind in MOVEMENTS or (generated and not ARITHMETIC_WORDS.search(generated[1])):
        return "movement"
    return "arithmetic"


def _tensors(found: Iterable[Mapping[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(str(tensor.get("Name", "")), tuple(int(side) for side in tensor.get("Dimensions", ())), _dtype(tensor))
        for tensor in found
    )


def _dtype(tensor: Mapping[str, Any]) -> str:
    stated = tensor.get("Datatype", tensor.get("DataType"))
    if stated is not None:
        return TYPES.get(str(stated), str(stated).lower())
    text = str(tensor.get("Format/Datatype", ""))
    return next((dtype for word, dtype in FORMATS.items() if re.search(rf"\b{word}\b", text)), text)


def _fields(line: str) -> dict[str, Any]:
    """One line of the log: ``Name: ..., LayerType: ..., Inputs: [ { Name: ..., Dimensions: [1,2], ... }, ...], ...``."""
    heads = [(match.start(), match.end(), match[1]) for match in re.finditer(HEADS, line)]
    if not heads or heads[0][2] != "Name" or not any(name == "LayerType" for *_, name in heads):
        raise EngineBuildError(
            f"A line of the builder's list of layers has an unknown form: {line[:200]!r}. Please report the version of TensorRT."
        )
    ends = [start for start, *_ in heads[1:]] + [len(line)]
    fields: dict[str, Any] = {}
    for (_, begin, name), end in zip(heads, ends, strict=True):
        text = line[begin:end].strip().rstrip(",")
        fields[name] = _listed_tensors(text) if name in ("Inputs", "Constants", "Outputs") else text.strip()
    return fields


HEADS = r"(?:^|, )(Name|LayerType|Inputs|Constants|Outputs|TacticName|TacticValue|ParameterType|StreamId|Metadata): "
"""Where a field of a layer begins. Those of its tensors stand behind a brace, or have other names."""


def _listed_tensors(text: str) -> list[dict[str, Any]]:
    found = []
    for part in re.findall(r"\{ (Name: .*?)\}", text):
        dims = re.search(r"Dimensions: \[([-\d,]*)\]", part)
        dtype = re.search(r"Datatype: (\w+)", part)
        name = re.match(r"Name: (.*?), (?:Location|Dimensions): ", part)
        if dims is None or dtype is None or name is None:
            raise EngineBuildError(
                f"A tensor in the builder's list of layers has an unknown form: {part[:200]!r}. Please report it."
            )
        sides = [int(side) for side in dims[1].split(",") if side]
        found.append({"Name": name[1], "Dimensions": sides, "Datatype": dtype[1]})
    return found
