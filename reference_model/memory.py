"""Less memory for the same result: recompute blocks on the way back, and attend to some of the windows at a time.

Both are settings of a built model and no part of its config: they decide how it is computed and never what. Chunks split matrix
products that are summed in float32, so results can differ in the last bit where a library cuts its work by the number of rows.

Source: gradient checkpointing, arXiv:1604.06174.
"""

from __future__ import annotations

from torch import nn

from reference_model.attention import WindowAttention
from reference_model.config import ConfigError
from reference_model.model import Stage


def limit_memory(model: nn.Module, *, checkpoint_blocks: bool = False, window_chunk: int = 0) -> None:
    """Set both in place, for every stage and attention of ``model``; the defaults undo it.

    Args:
        model: Anything that holds a :class:`reference_model.model.SwinV2`.
        checkpoint_blocks: Keep only the input of each block for the gradient, and run the block again when its turn comes: one
            more forward pass a training step, none in inference.
        window_chunk: Windows that attention looks at together, counted over the whole batch; 0 takes all at once. It works in
            inference as well. Where gradients are wanted, the chunks are run again on the way back.

    Raises:
        ConfigError: When the number is negative, or ``model`` has no stage that could be told.
    """
    if window_chunk < 0:
        raise ConfigError(f"window_chunk is {window_chunk}; expected a number of windows, or 0 for all at once.")
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    attentions = [module for module in model.modules() if isinstance(module, WindowAttention)]
    if not stages or not attentions:
        raise ConfigError(
            f"{type(model).__name__} holds no stage of a SwinV2, so its memory cannot be limited; expected one of reference_model."
        )
    for stage in stages:
        stage.checkpoint_blocks = checkpoint_blocks
    for attention in attentions:
        attention.window_chunk = window_chunk
