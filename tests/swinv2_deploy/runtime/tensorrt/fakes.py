"""The three TensorRT modules as far as this project touches them: what is not here does not exist, as in the real ones.

An engine of these is a JSON text. It adds up every image, times 1, 2, ... for each output column, through addresses.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

LAYERS = (
    "Layers:\n"
    "Name: layers.0.blocks.0.attn.qkv_myl0_0, LayerType: gemm, "
    "Inputs: [ { Name: a, Dimensions: [-1,8], Strides: [8,1], Datatype: Half, Format: (Linear) Row major linear format }], "
    "Constants: [ { Name: w, Dimensions: [8,24], Datatype: Half, Format: x }], "
    "Outputs: [ { Name: b, Dimensions: [-1,24], Datatype: Half, Format: x }], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: layers.0.blocks.0.attn.qkv]\n\nI/O Tensors:\n"
)


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


def fake_module(flavor: str, version: str) -> Any:
    """A module of one of ``tensorrt10``, ``tensorrt11``, ``tensorrt_rtx``, with counters in ``calls``."""
    calls: dict[str, list[Any]] = {}
    rtx = flavor == "tensorrt_rtx"

    def note(name: str, *values: Any) -> None:
        calls.setdefault(name, []).append(values)

    class ILogger:
        Severity = Severity
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    class IProgressMonitor:
        pass

    strongly = {"STRONGLY_TYPED": 0} if rtx else {"STRONGLY_TYPED": 1} if flavor == "tensorrt10" else {"OTHER": 7}
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", strongly)
    BuilderFlag = Enum("BuilderFlag", ["VERSION_COMPATIBLE", "WEIGHT_STREAMING"])
    ProfilingVerbosity = Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED", "NONE"])
    HardwareCompatibilityLevel = Enum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"])
    LayerInformationFormat = Enum("LayerInformationFormat", ["ONELINE", "JSON"])
    MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
    ComputeCapability = Enum("ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
    EngineValidity = Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
            self.content += input_cache.content
            return True

        def serialize(self) -> bytes:
            return self.content

    class BuilderConfig:
        def __init__(self) -> None:
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            self.builder_optimization_level = 3
            self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
            self.progress_monitor: Any = None
            self.profiles: list[Any] = []
            self.cache: TimingCache | None = None
            if rtx:
                self.num_compute_capabilities = 0
                self.capabilities: dict[int, Any] = {}

        def set_flag(self, flag: Any) -> None:
            note("flag", flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            note("pool", pool.name, pool_size)

        def add_optimization_profile(self, profile: Any) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
            return TimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            if b"foreign" in cache.content:
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> TimingCache | None:
            return self.cache

    if rtx:

        def set_compute_capability(self: Any, capability: Any, index: int) -> bool:
            self.capabilities[index] = capability
            return True

        BuilderConfig.set_compute_capability = set_compute_capability
        BuilderConfig.get_compute_capability = lambda self, index: self.capabilities[index]

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self.shapes[input] = (min, opt, max)

    class Tensor:
        def __init__(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
            self.name, self.shape, self.dtype = name, shape, dtype

    class Network:
        def __init__(self) -> None:
            self.inputs, self.outputs = [], []

        num_inputs = property(lambda self: len(self.inputs))
        num_outputs = property(lambda self: len(self.outputs))

        def get_input(self, index: int) -> Tensor:
            return self.inputs[index]

        def get_output(self, index: int) -> Tensor:
            return self.outputs[index]

    class Builder:
        def __init__(self, logger: Any) -> None:
            note("logger", id(logger))
            self.logger = logger

        def create_network(self, flags: int = 0) -> Network:
            note("network", flags)
            return Network()

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes | None:
            note("config", config)
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Timing", "Building engine", 3)
            for step in range(3):
                if not monitor.step_complete("Timing", step):
                    self.logger.log(Severity.ERROR, "BuildCanceled")
                    return None
            monitor.phase_finish("Timing")
            monitor.phase_finish("Building engine")
            if config.cache is not None:
                config.cache.content += b"+timed"
            if calls.get("inconsistent"):
                self.logger.log(Severity.WARNING, "Profile kMAX values are not self-consistent. node_matmul_15 has 4 and 9")
            for profile in config.profiles:
                self.logger.log(Severity.INFO, f"Total Activation Memory: {1000 * profile.shapes['pixel_values'][2][0]} bytes")
            self.logger.log(Severity.INFO, "Total Weights Memory: 77 bytes")
            if not calls.get("silent"):
                self.logger.log(Severity.VERBOSE, LAYERS)
            return json.dumps([[list(map(list, profile.shapes["pixel_values"])) for profile in config.profiles]]).encode()

    class ParserError:
        def node_name(self) -> str:
            return "head"

        def node(self) -> int:
            return 3

        def node_operator(self) -> str:
            return "Unheard"

        def desc(self) -> str:
            return "no importer for Unheard"

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self.network, self.num_errors = network, 0

        def parse_from_file(self, path: str) -> bool:
            import onnx

            model = onnx.load(path, load_external_data=False)
            if any(node.op_type == "Unheard" for node in model.graph.node):
                self.num_errors = 1
                return False
            for target, values in ((self.network.inputs, model.graph.input), (self.network.outputs, model.graph.output)):
                for value in values:
                    shape = tuple(
                        dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
                    )
                    target.append(Tensor(value.name, shape, "float32"))
            return True

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    class RuntimeCache:
        content = b""

        def deserialize(self, serialized: bytes) -> bool:
            self.content = bytes(serialized)
            return True

        def serialize(self) -> bytes:
            return self.content + b"+jit"

    class RuntimeConfig:
        cache: Any = None

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self.cache = cache
            return True

        def get_runtime_cache(self) -> RuntimeCache:
            return self.cache

    class Context:
        def __init__(self, profiles: list[Any], config: Any = None) -> None:
            self.profiles, self.config = profiles, config
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}
            self.profile = 0

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            note("profile", profile_index)
            self.profile = profile_index
            return profile_index < len(self.profiles)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self.profiles[self.profile]
            self.shapes[name] = tuple(shape)
            return all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))

        def infer_shapes(self) -> list[str]:
            return []

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (self.shapes["pixel_values"][0], COLUMNS)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self.addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            note("execute", self.shapes["pixel_values"])
            if calls.get("fail"):
                return False
            images = _at(self.addresses["pixel_values"], self.shapes["pixel_values"])
            sums = images.reshape(len(images), -1).sum(axis=1, dtype=np.float64)
            _at(self.addresses["logits"], (len(images), COLUMNS))[:] = sums[:, None] * np.arange(1, COLUMNS + 1)
            return True

        def get_runtime_config(self) -> RuntimeConfig:
            return self.config

    class EngineInspector:
        def get_engine_information(self, format: Any) -> str:
            note("inspect", format.name)
            tensor = {"Name": "a", "Dimensions": [-1, 8], "Format/Datatype": "Row major linear Int8 format"}
            weight = tensor | {"Name": "w", "Dimensions": [8, 24]}
            layer = {"Name": "qkv", "LayerType": "gemm", "Inputs": [tensor], "Constants": [weight], "Outputs": [tensor]}
            return json.dumps({"Layers": [layer | {"Metadata": "[ONNX Layer: layers.0.blocks.0.attn.qkv]"}]})

    class Engine:
        device_memory_size_v2 = 4096

        def __init__(self, profiles: list[Any]) -> None:
            self.profiles = profiles

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector()

        def create_execution_context(self, config: Any = None) -> Context:
            note("context")
            return Context(self.profiles, config)

    if rtx:
        Engine.create_runtime_config = lambda self: RuntimeConfig()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            note("deserialize")
            if calls.get("unloadable"):
                return None
            return Engine(json.loads(bytes(serialized_engine))[0])

    if rtx:
        Runtime.get_engine_validity = lambda self, blob: (
            (EngineValidity.INVALID, 0x10) if calls.get("invalid") else (EngineValidity.VALID, 0)
        )
    shared = {
        "__version__": version,
        "ILogger": ILogger,
        "IProgressMonitor": IProgressMonitor,
        "Builder": Builder,
        "IBuilderConfig": BuilderConfig,
        "OnnxParser": OnnxParser,
        "ParserError": ParserError,
        "Runtime": Runtime,
        "ICudaEngine": Engine,
        "IExecutionContext": Context,
        "NetworkDefinitionCreationFlag": NetworkDefinitionCreationFlag,
        "BuilderFlag": BuilderFlag,
        "ProfilingVerbosity": ProfilingVerbosity,
        "HardwareCompatibilityLevel": HardwareCompatibilityLevel,
        "MemoryPoolType": MemoryPoolType,
        "LayerInformationFormat": LayerInformationFormat,
        "EngineInspector": EngineInspector,
        "nptype": np.dtype,
        "calls": calls,
    }
    alone = {
        "ComputeCapability": ComputeCapability,
        "EngineValidity": EngineValidity,
        "IRuntimeConfig": RuntimeConfig,
        "IRuntimeCache": RuntimeCache,
    }
    return SimpleNamespace(**shared, **(alone if rtx else {}))


COLUMNS = 7


def _at(address: int, shape: tuple[int, ...]) -> Any:
    """The float32 array of a shape that lies at an address."""
    count = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32).reshape(shape)
