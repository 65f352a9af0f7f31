"""One size for a file that takes any: the runtime computes everything that depends on it once, while loading. No torch, no onnx.

Shape letters: B batch, C channels, H W height and width of the images in px, P patches of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from reference_model.masking import patch_count
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import RunnerError, SpecError
from swinv2_deploy.runtime.masks import MASK_INPUT

if TYPE_CHECKING:
    from swinv2_deploy.runtime.onnx_file import OnnxFacts

Pinned = tuple[int, int, int]
"""B, H and W."""


def pinned_shapes(pinned: Pinned, facts: OnnxFacts, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's inputs by name, after the size was checked.

    Args:
        pinned: B, H and W.
        facts: What the file says of itself.
        name: Runner, for the message.

    Raises:
        SpecError: When it is no size.
        RunnerError: When the file is not right at this size.
    """
    if len(pinned) != 3 or not all(isinstance(value, int) and value > 0 for value in pinned):
        raise SpecError(f"{name} cannot be pinned to {pinned!r}; expected a batch, a height and a width in px, all above 0.")
    batch, height, width = pinned
    if facts.takes == "images":
        return {facts.takes: (batch, height, width, 3)}
    reason = facts.resolutions.refusal(height, width)
    if reason is not None:
        raise RunnerError(f"{name} cannot be pinned: {reason} Pin another size, or export with a range that holds this one.")
    shapes: dict[str, tuple[int, ...]] = {facts.takes: (batch, facts.config.num_channels, height, width)}
    if facts.config.task == "masked_image_modeling":
        shapes[MASK_INPUT] = (batch, patch_count(height, width, facts.config.patch_size))
    return shapes


def agreed(asked: Pinned | None, facts: OnnxFacts, name: str) -> Pinned | None:
    """What a runner is pinned to: what was asked for, or what its file was written for.

    Raises:
        RunnerError: When these are two.
    """
    if asked is not None and facts.pinned is not None and tuple(asked) != facts.pinned:
        raise RunnerError(
            f"{name} cannot be pinned to {asked!r}: 'pin' wrote the file for {facts.pinned!r}. Run that, or pin the artifact's own "
            "file."
        )
    return asked or facts.pinned


def pinned_range(pinned: Pinned | None, facts: OnnxFacts) -> ResolutionRange:
    """Sizes that a runner accepts, of a file that takes pixels."""
    if pinned is None or facts.takes == "images":
        return facts.resolutions
    side = (pinned[1], pinned[2])
    return ResolutionRange(min=side, opt=side, max=side)


def check_pinned(feeds: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Refuse what has another shape than the runner was pinned to.

    Raises:
        RunnerError: With what was expected.
    """
    for key, shape in shapes.items():
        if feeds[key].shape != shape:
            raise RunnerError(
                f"{name} was given {key} of shape {feeds[key].shape}, and was pinned to {shape}; make another runner for this "
                "size, or one that is not pinned."
            )
