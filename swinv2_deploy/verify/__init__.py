"""How far an artifact's ONNX files drifted from its weights: measured on images neither has seen, and judged."""

from swinv2_deploy.verify.compare import Progress, verify
from swinv2_deploy.verify.report import CandidateReport, Check, DriftReport
from swinv2_deploy.verify.spec import VerifySpec, parse_back_ends, parse_sizes
from swinv2_deploy.verify.tolerances import DEFAULTS, Tolerances, load_tolerances

__all__ = [
    "DEFAULTS",
    "CandidateReport",
    "Check",
    "DriftReport",
    "Progress",
    "Tolerances",
    "VerifySpec",
    "load_tolerances",
    "parse_back_ends",
    "parse_sizes",
    "verify",
]
