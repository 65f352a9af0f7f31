"""What an exported graph is given: checked images or photographs and, where it takes one, a mask. No torch, no onnx import.

Shape letters: B batch, H W height and width in px, P patches of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from swinv2_deploy.runtime.masks import MASK_INPUT, BoolArray, Masks, checked_mask
from swinv2_deploy.runtime.pinned import check_pinned
from swinv2_deploy.runtime.runner import Images, check_images, check_photographs

if TYPE_CHECKING:
    from swinv2_deploy.runtime.onnx_file import OnnxFacts


def checked_inputs(
    facts: OnnxFacts,
    images: Images,
    mask: BoolArray | None,
    masks: Masks | None,
    name: str,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Inputs of a file by name, after they were checked.

    Args:
        facts: What the file says of itself.
        images: Normalized float32 (B, 3, H, W), or uint8 (B, H, W, 3) for a file that takes photographs.
        mask: Bool (B, P) for a masked image model; None means what ``masks`` makes.
        masks: What a masked image model hides where it is not told; None means nothing.
        name: Runner, for the message.
        shapes: Shapes of the inputs by name that the runner is pinned to; None means any.

    Raises:
        RunnerError: When the size is outside the file's range or not the pinned one, or images or mask have another form.
    """
    if facts.takes == "images":
        check_photographs(images, name)
    else:
        check_images(images, name, facts.config.num_channels, facts.resolutions)
    hidden = checked_mask(mask, masks, images, facts.config, name)
    feeds = {facts.takes: np.ascontiguousarray(images)} | ({} if hidden is None else {MASK_INPUT: hidden})
    if shapes is not None:
        check_pinned(feeds, shapes, name)
    return feeds
