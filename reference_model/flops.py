"""What the blocks cost at any image size, and how much of it padding wastes.

A plain implementation pads the map of a block before attention: queries, keys, values, both attention products and the output
projection are computed for all P*Q tokens of the padded map, the MLP for the H*W real ones. A block costs, in floating-point
operations, two for a multiplication and an addition::

    8 * P*Q * C*A  +  4 * P*Q * N*A  +  4 * H*W * C*M

Its useful part is the same with H*W in the place of P*Q. Patch embedding, patch merging and the classifier do not depend on
windows and are left out; so are additions, norms and softmax, which are a few percent.

Shape letters: H W map in tokens, P Q padded map, N tokens of a window, C channels, A = heads * channels of a head, M hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from reference_model.config import SwinV2Config
from reference_model.windows import plan_windows, stage_maps


@dataclass(frozen=True, slots=True)
class BlockFlops:
    """Floating-point operations of all blocks for one image.

    Attributes:
        total: What a plain implementation computes.
        useful: The same without padding tokens.
    """

    total: int
    useful: int

    @property
    def padding(self) -> float:
        """Operations spent on padding, as a share of the useful ones."""
        return self.total / self.useful - 1 if self.useful else 0.0


@dataclass(frozen=True, slots=True)
class WindowSavings:
    """Fixed against adaptive windows, averaged over image sizes.

    Attributes:
        sizes: How many image sizes.
        fixed_padding: Mean padding of fixed windows, as in :attr:`BlockFlops.padding`.
        adaptive_padding: Mean padding of adaptive windows.
        saved: Mean share of the operations with fixed windows that adaptive ones save.
        most_saved: The largest such share.
        least_saved: The smallest; negative where adaptive windows cost more, which larger windows without padding can.
    """

    sizes: int
    fixed_padding: float
    adaptive_padding: float
    saved: float
    most_saved: float
    least_saved: float


def block_flops(config: SwinV2Config, height: int, width: int) -> BlockFlops:
    """Operations of the blocks that run for an image of ``height`` by ``width`` px under the config's window policy."""
    total = useful = 0
    maps = stage_maps(height, width, config.patch_size, config.num_stages)
    for stage, (rows, columns) in enumerate(maps[: config.running_stages]):
        plan = plan_windows(rows, columns, config.window_size, shifted=False, policy=config.window_policy)
        dim, tokens = config.stage_dim(stage), plan.window[0] * plan.window[1]
        padded = plan.height.padded * plan.width.padded
        for heads, hidden in zip(config.num_heads[stage], config.mlp_hidden[stage], strict=True):
            inner = heads * config.head_dims[stage]
            for_each_token = 8 * dim * inner + 4 * tokens * inner
            mlp = 4 * rows * columns * dim * hidden
            total += padded * for_each_token + mlp
            useful += rows * columns * for_each_token + mlp
    return BlockFlops(total, useful)


def window_savings(config: SwinV2Config, sizes: Sequence[tuple[int, int]]) -> WindowSavings:
    """What adaptive windows save over fixed ones at images of these (height, width) px, whatever the config's own policy."""
    fixed = [block_flops(replace(config, window_policy="fixed"), *size) for size in sizes]
    adaptive = [block_flops(replace(config, window_policy="adaptive"), *size) for size in sizes]
    saved = [1 - after.total / before.total if before.total else 0.0 for before, after in zip(fixed, adaptive, strict=True)]
    return WindowSavings(
        sizes=len(sizes),
        fixed_padding=fmean(flops.padding for flops in fixed),
        adaptive_padding=fmean(flops.padding for flops in adaptive),
        saved=fmean(saved),
        most_saved=max(saved),
        least_saved=min(saved),
    )
