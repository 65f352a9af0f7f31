"""Layers of an engine that was just built: from the builder's log, or from the engine inspector where the log has none."""

from __future__ import annotations

from swinv2_deploy.engine.build import Built
from swinv2_deploy.engine.layers import LISTING, EngineLayer, layers_from_json, layers_from_log
from swinv2_deploy.errors import EngineBuildError
from swinv2_deploy.runtime.tensorrt.backend import Backend


def layers_of(backend: Backend, built: Built) -> tuple[EngineLayer, ...]:
    """Every layer of an engine.

    TensorRT-RTX lists them in its log, which needs no GPU. Where a back end does not, the engine is loaded, on the GPU that it was
    built on.

    Raises:
        EngineBuildError: When neither tells.
    """
    if any(message.startswith(LISTING) for message in built.messages):
        return layers_from_log(built.messages)
    trt = backend.trt
    with backend.logger.recording() as records:
        runtime = trt.Runtime(backend.logger)
        engine = runtime.deserialize_cuda_engine(built.plan)
        if engine is None:
            said = "; ".join(backend.errors(records)) or "no reason was given"
            raise EngineBuildError(
                f"{backend.flavor} {backend.version} listed no layers, and does not load what it has built: "
                f"{' '.join(said.split())}. Nothing was written; check the GPU and its driver."
            )
        inspector = engine.create_engine_inspector()
        text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return layers_from_json(text)
