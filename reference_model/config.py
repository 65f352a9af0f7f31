"""The one description of a Swin Transformer V2, pruned or not. No torch import.

A config says everything that decides the function the weights compute: widths per block, window sizes, heads. A pruned model is
nothing but a config with fewer heads or narrower MLPs in some blocks.

Source: Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", CVPR 2022, arXiv:2111.09883.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Task = Literal["classification", "encoder", "backbone", "masked_image_modeling", "image_reconstruction"]

WindowPolicy = Literal["fixed", "adaptive"]

TASKS: tuple[Task, ...] = ("backbone", "classification", "encoder", "image_reconstruction", "masked_image_modeling")

DECODER_TASKS: tuple[Task, ...] = ("image_reconstruction", "masked_image_modeling")
"""Tasks whose model ends in a decoder and returns an image."""

UPSCALES = (2, 4)
"""How many times larger than its input the image of an image reconstruction may be."""

WINDOW_POLICIES: tuple[WindowPolicy, ...] = ("fixed", "adaptive")

NORMS = ("norm1", "norm2")


class ConfigError(ValueError):
    """A config whose numbers contradict each other or leave the supported range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinV2Config:
    """Architecture of one Swin Transformer V2.

    Attributes:
        task: What the model returns: class logits, encoded tokens, feature maps, or an image.
        image_size: (height, width) in px that the weights were trained for; other sizes run as well.
        patch_size: Side in px of the square that becomes one token.
        num_channels: Channels of the input image.
        embed_dim: Channels C of the first stage; stage i has ``C * 2**i``.
        depths: Blocks in each stage.
        num_heads: Heads of every block, one tuple a stage. Uneven after pruning.
        head_dims: Channels of one head, one number a stage.
        mlp_hidden: MLP hidden units of every block, one tuple a stage. Uneven after pruning.
        window_size: Side in tokens of the attention window; it shrinks where the map is smaller.
        window_policy: ``fixed`` keeps that window at every size; ``adaptive`` takes one nearby that needs less padding.
        pretrained_window_sizes: Window that normalizes the position-bias coordinates, one a stage; 0 means the window in use,
            or with adaptive windows the one that was in use at ``image_size``.
        qkv_bias: Whether query and value have a bias (key never has one).
        use_absolute_embeddings: Whether a learned absolute position embedding is added to the patches.
        patch_norm: Whether the patch embedding ends in a LayerNorm.
        extra_norm_period: A LayerNorm on the main branch after every n-th block of a stage (paper, giant models); 0 means none.
        removed_norms: ``(stage, block, "norm1" | "norm2")`` whose LayerNorm is the identity.
        layer_norm_eps: Epsilon of every LayerNorm.
        drop_path_rate: Stochastic depth of the last block while training; earlier blocks have linearly less.
        num_classes: Width of the classifier; 0 when there is none.
        labels: Class names in the order of the logits; empty when unknown.
        out_features: For a backbone, which of ``stem``, ``stage1``... to return, in order.
        upscale: For image reconstruction, how many times larger the image becomes, 2 or 4; otherwise 1.
    """

    task: Task = "classification"
    image_size: tuple[int, int]
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[tuple[int, ...], ...]
    head_dims: tuple[int, ...]
    mlp_hidden: tuple[tuple[int, ...], ...]
    window_size: int
    window_policy: WindowPolicy = "fixed"
    pretrained_window_sizes: tuple[int, ...]
    qkv_bias: bool = True
    use_absolute_embeddings: bool = False
    patch_norm: bool = True
    extra_norm_period: int = 0
    removed_norms: tuple[tuple[int, int, str], ...] = ()
    layer_norm_eps: float = 1e-5
    drop_path_rate: float = 0.0
    num_classes: int = 0
    labels: tuple[str, ...] = ()
    out_features: tuple[str, ...] = ()
    upscale: int = 1

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the feature maps a backbone can return: ``stem``, ``stage1``, ..."""
        return ("stem", *(f"stage{i + 1}" for i in range(self.num_stages)))

    @property
    def running_stages(self) -> int:
        """Stages that the outputs depend on: all, but in a backbone none behind the last map it returns."""
        if self.task != "backbone":
            return self.num_stages
        return max(self.stage_names.index(name) for name in self.out_features)

    @property
    def running_depths(self) -> tuple[int, ...]:
        """Blocks in each of those."""
        return self.depths[: self.running_stages]

    @property
    def final_dim(self) -> int:
        """Channels of the last stage."""
        return self.stage_dim(self.num_stages - 1)

    @property
    def encoder_stride(self) -> int:
        """Pixels along each axis that one token of the last stage stands for: 32 for the published models."""
        return int(self.patch_size * 2 ** (self.num_stages - 1))

    def stage_dim(self, stage: int) -> int:
        """Channels of a stage, counted from 0."""
        return int(self.embed_dim * 2**stage)

    def extra_norm_after(self, block: int) -> bool:
        """Whether an extra LayerNorm follows this block, counted from 0, of whatever stage has it."""
        return self.extra_norm_period > 0 and (block + 1) % self.extra_norm_period == 0

    @property
    def has_extra_norms(self) -> bool:
        """Whether any block has one: with a period longer than every stage none has."""
        return any(self.extra_norm_after(block) for block in range(max(self.depths)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, lists for tuples."""
        return {key: _to_lists(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SwinV2Config:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: On an unknown or missing key, or inconsistent numbers.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"Unknown config keys {unknown}; known keys are {sorted(known)}.")
        try:
            return cls(**{key: _to_tuples(value) for key, value in values.items()})
        except TypeError as error:
            raise ConfigError(f"The config is incomplete or of the wrong types: {error}.") from error


def make_config(
    *,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int,
    image_size: int | tuple[int, int],
    pretrained_window_sizes: Sequence[int] | None = None,
    mlp_ratio: float = 4.0,
    **others: Any,
) -> SwinV2Config:
    """Config of an unpruned model, from the numbers the paper uses: one head count a stage and one MLP ratio.

    Raises:
        ConfigError: When the numbers contradict each other.
    """
    if len(num_heads) != len(depths):
        raise ConfigError(f"num_heads has {len(num_heads)} entries and depths {len(depths)}; give one head count a stage.")
    dims = [embed_dim * 2**i for i in range(len(depths))]
    for dim, heads in zip(dims, num_heads, strict=True):
        if heads < 1 or dim % heads:
            raise ConfigError(f"{heads} heads do not divide a stage of {dim} channels; choose a divisor of {dim}.")
    size = (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))
    return SwinV2Config(
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple((heads,) * depth for heads, depth in zip(num_heads, depths, strict=True)),
        head_dims=tuple(dim // heads for dim, heads in zip(dims, num_heads, strict=True)),
        mlp_hidden=tuple((int(dim * mlp_ratio),) * depth for dim, depth in zip(dims, depths, strict=True)),
        window_size=window_size,
        image_size=size,
        pretrained_window_sizes=tuple(pretrained_window_sizes or (0,) * len(depths)),
        **others,
    )


def _validate(config: SwinV2Config) -> None:
    stages = len(config.depths)
    if stages < 1 or any(depth < 1 for depth in config.depths):
        raise ConfigError(f"depths is {config.depths}; every stage needs at least one block.")
    for name in ("num_heads", "head_dims", "mlp_hidden", "pretrained_window_sizes"):
        values = getattr(config, name)
        if len(values) != stages:
            raise ConfigError(f"{name} has {len(values)} entries, depths has {stages}; give one entry a stage.")
    for name in ("num_heads", "mlp_hidden"):
        for stage, (values, depth) in enumerate(zip(getattr(config, name), config.depths, strict=True)):
            if len(values) != depth or any(value < 1 for value in values):
                raise ConfigError(f"{name}[{stage}] is {values}; expected {depth} positive numbers, one a block.")
    positive = ("patch_size", "num_channels", "embed_dim", "window_size")
    for name in positive:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; expected a positive number.")
    if any(dim < 1 for dim in config.head_dims) or any(size < 0 for size in config.pretrained_window_sizes):
        raise ConfigError("head_dims must be positive and pretrained_window_sizes zero or positive.")
    if len(config.image_size) != 2 or min(config.image_size) < 1:
        raise ConfigError(f"image_size is {config.image_size}; expected (height, width) in px.")
    if config.task not in TASKS:
        raise ConfigError(f"task is {config.task!r}; expected one of {list(TASKS)}.")
    if config.window_policy not in WINDOW_POLICIES:
        raise ConfigError(f"window_policy is {config.window_policy!r}; expected one of {list(WINDOW_POLICIES)}.")
    if config.task == "classification" and config.num_classes < 1:
        raise ConfigError(f"A classifier needs num_classes >= 1, got {config.num_classes}; for features use task 'encoder'.")
    if config.labels and len(config.labels) != config.num_classes:
        raise ConfigError(f"{len(config.labels)} labels for {config.num_classes} classes; give one label a class or none.")
    for stage, block, norm in config.removed_norms:
        if not (0 <= stage < stages and 0 <= block < config.depths[stage] and norm in NORMS):
            raise ConfigError(f"removed_norms names ({stage}, {block}, {norm!r}), which this model does not have.")
    unknown = [name for name in config.out_features if name not in config.stage_names]
    if unknown or (config.task == "backbone" and not config.out_features):
        raise ConfigError(f"out_features is {config.out_features}; a backbone returns some of {config.stage_names}.")
    scales = UPSCALES if config.task == "image_reconstruction" else (1,)
    if config.upscale not in scales:
        raise ConfigError(f"upscale is {config.upscale}; a model for {config.task} has one of {scales}.")


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list | tuple) else value
