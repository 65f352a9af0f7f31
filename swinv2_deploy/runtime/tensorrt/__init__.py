"""TensorRT and TensorRT-RTX behind one face. Nothing is imported from either before a back end is chosen."""

from swinv2_deploy.runtime.tensorrt.backend import Backend, choose_backend
from swinv2_deploy.runtime.tensorrt.sidecar import EngineSidecar, check_engine, read_sidecar, write_sidecar

__all__ = ["Backend", "EngineSidecar", "check_engine", "choose_backend", "read_sidecar", "write_sidecar"]
