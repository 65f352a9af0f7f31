"""From an ONNX file to a TensorRT engine, and to a report of what the compiler made of it. TensorRT is imported when it is used."""

from swinv2_deploy.engine.spec import EngineSpec

__all__ = ["EngineSpec"]
