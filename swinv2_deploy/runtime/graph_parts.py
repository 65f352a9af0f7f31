"""An exported graph taken apart: any value inside it read out, and any value replaced by one from elsewhere.

The exporter names values after modules (``layers.0.blocks.1.mlp.fc2``), and quantization keeps these names, so the same value can
be found in every form of a model. Reading values out changes what ONNX Runtime may fuse; :meth:`GraphParts.run` without any of that
is the graph as it ships, up to rounding.

Shape letters: B batch, H W map in tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from reference_model.config import SwinV2Config
from swinv2_deploy.errors import RunnerError, UnsupportedModelError
from swinv2_deploy.runtime.emulation import emulate
from swinv2_deploy.runtime.inputs import checked_inputs
from swinv2_deploy.runtime.masks import masks_for
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.onnx_runner import WEIGHTS_FOLDER, failures, saturates, session_options
from swinv2_deploy.runtime.products import has_integers
from swinv2_deploy.runtime.runner import Array

OWN = "@own"
"""Ends the name of a value that the graph computed and that was replaced for those who read it."""

_NUMPY: dict[int, type[np.floating[Any]]] = {int(TensorProto.FLOAT): np.float32, int(TensorProto.FLOAT16): np.float16}

SESSIONS = 2
"""Sessions kept: each holds the weights, and what is taken apart in the middle needs both ends."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of the network between two values that carry everything.

    Attributes:
        name: Name of its module, such as ``layers.0.blocks.1`` or ``layers.0.downsample``.
        stage: Counted from 0.
        block: Counted from 0; None for patch merging.
        before: Value that enters it, rows (B*H*W, C).
        after: Value that leaves it.
    """

    name: str
    stage: int
    block: int | None
    before: str
    after: str


class GraphParts:
    """An ONNX file whose inner values can be read and replaced.

    Args:
        path: File that ``export`` or ``quantize`` wrote, for pixels.
        threads: CPU threads; None leaves ONNX Runtime's choice.

    Attributes:
        facts: What the file says of itself.
        values: Names of all floating-point values inside.
        units: Blocks and patch merging, in order.

    Raises:
        RunnerError: When the file is missing, damaged or not ours.
        UnsupportedModelError: When its values do not bear the names of modules.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.path = path
        self.facts = read_facts(path)
        if self.facts.takes != "pixel_values":
            raise UnsupportedModelError(
                f"{path.name} takes photographs; its inner values are those of the file that takes pixels."
            )
        self._threads = threads
        self._masks = masks_for(self.facts.config)
        emulated = self.facts.rest == "bf16"
        self._proto = ir.to_proto(emulate(ir.load(path))) if emulated else onnx.load(path, load_external_data=False)
        self._exact = has_integers(self.facts.precision) and saturates()
        self._types = _types(self._proto)
        self.values = frozenset(
            name
            for node in self._proto.graph.node
            for name in node.output
            if self._types.get(name, TensorProto.FLOAT) in _NUMPY
        )
        self._inputs_of = {node.name: list(node.input) for node in self._proto.graph.node}
        self.units = self._find_units(self.facts.config)
        self._sessions: dict[tuple[tuple[str, ...], tuple[str, ...]], object] = {}

    def run(self, images: Array, outputs: Sequence[str] = (), given: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """The graph's own outputs and others inside it, where some values are replaced.

        Args:
            images: Normalized (B, 3, height, width).
            outputs: Values to read out besides the graph's outputs. One that is also given is what the graph itself computed.
            given: Value to what takes its place, rows of the same number.

        Raises:
            RunnerError: When ONNX Runtime fails, or a value is not in the graph.
        """
        given = dict(given or {})
        missing = sorted({*outputs, *given} - self.values)
        if missing:
            raise RunnerError(f"{self.path.name} has no values {missing[:3]}; it was written by another version. Export again.")
        feeds: dict[str, NDArray[np.generic]] = dict(checked_inputs(self.facts, images, None, self._masks, self.path.name))
        feeds |= {name: np.ascontiguousarray(value).astype(_NUMPY[self._type(name)]) for name, value in given.items()}
        asked = tuple(dict.fromkeys(outputs))
        session, names = self._session(asked, tuple(sorted(given)))
        known = {entry.name for entry in session.get_inputs()}  # type: ignore[attr-defined]  # a session
        try:
            found = session.run(list(names), {name: value for name, value in feeds.items() if name in known})  # type: ignore[attr-defined]
        except failures() as error:
            raise RunnerError(f"ONNX Runtime failed on parts of {self.path}: {error}") from error
        return {name.removesuffix(OWN): np.asarray(value, np.float32) for name, value in zip(names, found, strict=True)}

    def _session(self, outputs: tuple[str, ...], given: tuple[str, ...]) -> tuple[object, tuple[str, ...]]:
        import onnxruntime

        own = tuple(output.name for output in self._proto.graph.output)
        names = own + tuple(f"{name}{OWN}" if name in given else name for name in outputs if name not in own)
        key = (names, given)
        if key not in self._sessions:
            proto = onnx.ModelProto()
            proto.CopyFrom(self._proto)
            for node in proto.graph.node:
                for place, name in enumerate(node.output):
                    if name in given:
                        node.output[place] = name + OWN
            proto.graph.input.extend(helper.make_tensor_value_info(name, self._type(name), None) for name in given)
            proto.graph.output.extend(
                helper.make_tensor_value_info(name, self._type(name.removesuffix(OWN)), None) for name in names[len(own) :]
            )
            options = session_options(self._threads, exact=self._exact)
            options.add_session_config_entry(WEIGHTS_FOLDER, str(self.path.parent))
            try:
                made = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            except failures() as error:
                raise RunnerError(f"ONNX Runtime does not load parts of {self.path}: {error}") from error
            while len(self._sessions) >= SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[key] = made
        return self._sessions[key], names

    def _type(self, name: str) -> int:
        return self._types.get(name, TensorProto.FLOAT)

    def _find_units(self, config: SwinV2Config) -> tuple[Unit, ...]:
        if not config.running_stages:
            raise UnsupportedModelError(
                f"{self.path.name} returns the stem alone, behind no block; it has no parts to look at."
            )
        first = "layers.0.blocks.0.residual1"
        if first not in self._inputs_of:
            raise UnsupportedModelError(f"{self.path.name} has no node {first}; its parts cannot be told. Export it again.")
        value = self._existing(self._inputs_of[first][0])
        units = []
        for stage, depth in enumerate(config.running_depths):
            for block in range(depth):
                name = f"layers.{stage}.blocks.{block}"
                after = self._existing(f"{name}.{'norm3' if config.extra_norm_after(block) else 'residual2'}")
                units.append(Unit(name, stage, block, value, after))
                value = after
            if stage < config.running_stages - 1:
                after = self._existing(f"layers.{stage}.downsample.norm")
                units.append(Unit(f"layers.{stage}.downsample", stage, None, value, after))
                value = after
        return tuple(units)

    def _existing(self, value: str) -> str:
        if value not in self.values:
            raise UnsupportedModelError(f"{self.path.name} has no value {value}; its parts cannot be told. Export it again.")
        return value


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value that is known; what follows an operator of ONNX Runtime's own is not, and is float32."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, ValueError):
        inferred = proto
    known: Iterable[onnx.ValueInfoProto] = (*inferred.graph.value_info, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in known if value.type.tensor_type.elem_type}
