"""Models that run, behind one face: images in, named outputs out. Back ends are imported when a runner is made."""

from swinv2_deploy.runtime.load import load_runner
from swinv2_deploy.runtime.masks import BoolArray, Masks, masks_for
from swinv2_deploy.runtime.onnx_runner import OnnxRunner
from swinv2_deploy.runtime.openvino_norms import exact_norms
from swinv2_deploy.runtime.openvino_runner import OpenVinoRunner
from swinv2_deploy.runtime.pinned import Pinned
from swinv2_deploy.runtime.proof import Proof, prove
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
    "BoolArray",
    "FileRunner",
    "FloatPrecision",
    "Masks",
    "OnnxRunner",
    "OpenVinoRunner",
    "Pinned",
    "Precision",
    "ProductMode",
    "Products",
    "Proof",
    "Provider",
    "Runner",
    "TorchRunner",
    "exact_norms",
    "load_runner",
    "masks_for",
    "prove",
]
