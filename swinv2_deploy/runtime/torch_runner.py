"""The reference model as a runner. It is right at any size."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from reference_model.model import EncoderOutput, SwinV2
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.runtime.masks import BoolArray, Masks, checked_mask
from swinv2_deploy.runtime.runner import Array, Precision, check_images, output_names


class TorchRunner:
    """Runs the reference model on the CPU.

    Args:
        model: Reference model; put into evaluation mode.
        threads: CPU threads; None leaves PyTorch's choice.
        double: Whether to compute a copy in float64, the judge of float32's own rounding. Outputs stay float32.
        masks: What a masked image model hides where :meth:`run` is not told; None means nothing.
    """

    def __init__(self, model: SwinV2, *, threads: int | None = None, double: bool = False, masks: Masks | None = None) -> None:
        self._model = (copy.deepcopy(model).double() if double else model).eval()
        self._dtype = torch.float64 if double else torch.float32
        self._threads = threads
        self._masks = masks
        self.name = "torch float64" if double else "torch float32"
        self.precision: Precision = "fp32"
        self.provider = f"torch {torch.__version__} cpu"
        self.resolutions: ResolutionRange | None = None
        self.output_names = output_names(model.config)

    def run(self, images: Array, bool_masked_pos: BoolArray | None = None) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of normalized float32 images (B, 3, H, W), with masks (B, P) for a masked image model.

        Raises:
            RunnerError: When the images or masks have another shape or type, or PyTorch fails.
        """
        check_images(images, self.name, self._model.config.num_channels, None)
        mask = checked_mask(bool_masked_pos, self._masks, images, self._model.config, self.name)
        try:
            with torch.inference_mode(), _threads(self._threads):
                pixels = torch.from_numpy(np.array(images)).to(self._dtype)
                outputs = self._model(*([pixels] if mask is None else [pixels, torch.from_numpy(np.array(mask))]))
        except (RuntimeError, MemoryError) as error:
            size = "x".join(map(str, images.shape))
            raise RunnerError(f"{self.name} failed on images of {size}: {error}. Use fewer or smaller images.") from error
        if isinstance(outputs, EncoderOutput):
            tensors = [outputs.last_hidden_state, outputs.pooler_output]
        elif isinstance(outputs, dict):
            tensors = list(outputs.values())
        else:
            tensors = [outputs]
        return {name: tensor.float().numpy() for name, tensor in zip(self.output_names, tensors, strict=True)}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
