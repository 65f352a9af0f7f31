"""Models that run, behind one face: images in, named outputs out. Back ends are imported when a runner is made."""

from swinv2_deploy.runtime.load import load_runner
from swinv2_deploy.runtime.onnx_runner import OnnxRunner
from swinv2_deploy.runtime.openvino_runner import OpenVinoRunner
from swinv2_deploy.runtime.runner import (
    Array,
    BackEnd,
    FileRunner,
    FloatPrecision,
    Precision,
    ProductMode,
    Products,
    Provider,
    Runner,
)
from swinv2_deploy.runtime.torch_runner import TorchRunner

__all__ = [
    "Array",
    "BackEnd",
    "FileRunner",
    "FloatPrecision",
    "OnnxRunner",
    "OpenVinoRunner",
    "Precision",
    "ProductMode",
    "Products",
    "Provider",
    "Runner",
    "TorchRunner",
    "load_runner",
]
