"""From a Swin Transformer V2 checkpoint to a verified ONNX model or TensorRT engine.

Importing this package is light: no torch. The stages live in the rooms below it, each with a spec and one function:
``swinv2_deploy.quantize``, ``swinv2_deploy.export``, ``swinv2_deploy.verify`` and so on.
"""

from swinv2_deploy.errors import SwinDeployError, ToleranceExceeded

__all__ = ["SwinDeployError", "ToleranceExceeded", "__version__"]

__version__ = "0.1.0"
