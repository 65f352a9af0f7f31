"""From a reference model to an artifact with an ONNX graph that is right at every size of its range."""

from swinv2_deploy.export.spec import ExportSpec
from swinv2_deploy.export.to_onnx import export

__all__ = ["ExportSpec", "export"]
