"""How far an artifact's ONNX files drifted from its weights: measured on images neither has seen, and judged."""

from swinv2_deploy.verify.bisect import Bisection
from swinv2_deploy.verify.compare import share, verify
from swinv2_deploy.verify.culprit import find_culprit
from swinv2_deploy.verify.engines import check_sharing
from swinv2_deploy.verify.layers import LayerDrift
from swinv2_deploy.verify.report import CandidateReport, Check, DriftReport
from swinv2_deploy.verify.session import Progress
from swinv2_deploy.verify.spec import VerifySpec, parse_back_ends, parse_sizes
from swinv2_deploy.verify.tolerances import DEFAULTS, Tolerances, load_tolerances

__all__ = [
    "DEFAULTS",
    "Bisection",
    "CandidateReport",
    "Check",
    "DriftReport",
    "LayerDrift",
    "Progress",
    "Tolerances",
    "VerifySpec",
    "check_sharing",
    "find_culprit",
    "load_tolerances",
    "parse_back_ends",
    "parse_sizes",
    "share",
    "verify",
]
