"""The one fine-tuning loop: from scratch today; recovery after pruning and quantization-aware training grow on it."""

from swinv2_deploy.training.loop import TrainResult, train
from swinv2_deploy.training.spec import Phase, TrainSpec

__all__ = ["Phase", "TrainResult", "TrainSpec", "train"]
