"""The one fine-tuning loop: training from scratch, recovery after pruning and quantization-aware training share it."""

from swinv2_deploy.training.loop import TrainResult, train
from swinv2_deploy.training.spec import Phase, TrainSpec

__all__ = ["Phase", "TrainResult", "TrainSpec", "train"]
