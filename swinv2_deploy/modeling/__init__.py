"""What a model artifact means as an nn.Module: load and save it, and name its quantization sites."""

from swinv2_deploy.modeling.io import load_model, write_model_files
from swinv2_deploy.modeling.sites import POLICIES, Policy, quantization_sites

__all__ = ["POLICIES", "Policy", "load_model", "quantization_sites", "write_model_files"]
