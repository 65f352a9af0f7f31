"""Post-training quantization: measured ranges become explicit Q/DQ pairs in the graph."""

from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec

__all__ = ["QuantizeSpec", "quantize"]
