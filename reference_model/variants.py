"""The published Swin Transformer V2 models, and this project's ``nano``: architecture, size, resolution, window. Data only.

A size and a resolution do not always name one model: ``base`` at 256 px exists with window 8, with window 16, and with window
16 fine-tuned from weights trained with window 12 (``12to16``). Those differ in accuracy by 2 points, so :func:`find_variant`
never chooses between them.

Source: microsoft/Swin-Transformer MODELHUB.md, configs/swinv2 and configs/simmim (f82860b).
"""

from __future__ import annotations

from dataclasses import dataclass

from reference_model.config import SwinV2Config, make_config

MICROSOFT_RELEASE = "https://github.com/SwinTransformer/storage/releases/download/v2.0.0/"
SIMMIM_HUB_ID = "zdaxie/SimMIM"
PRETRAINED_AT_192 = (12, 12, 12, 6)
"""Windows of the four stages in pretraining at 192 px: the last map is only 6 tokens wide."""

_WIDTHS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    # size: channels of the first stage, blocks and heads of each stage
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "huge": (352, (2, 2, 18, 2), (11, 22, 44, 88)),
    "giant": (448, (2, 2, 18, 2), (14, 28, 56, 112)),
}
# The paper adds a LayerNorm on the main branch after every 6th block of its H and G models. The published code has none, and
# whether the SimMIM huge and giant files hold any is not established, so extra_norm_period is 0 here. A file that does hold
# such norms is refused with their names when it is loaded, never read without them.


class VariantError(ValueError):
    """No variant fits the request, or several do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One published model.

    Attributes:
        name: Key in :data:`VARIANTS`.
        size: tiny, small, base, large, nano, or the SimMIM family's simmim-small to simmim-giant.
        resolution: Side in px of the square image it was trained for last.
        window: How ``--window`` names it: ``"16"``, or ``"12to16"`` when the window grew between pretraining and fine-tuning.
        pretraining: What it was trained on, in words.
        config: Its architecture.
        resize_shortest: Short side in px before the center crop in its evaluation; None squashes the image to the resolution.
        hub_id: Repository on the Hugging Face Hub; empty when there is none.
        timm_id: Name in timm with its tag; empty when there is none.
        url: Where its authors publish the weights; empty when they do not.
        interpolation: Filter of the resize.
    """

    name: str
    size: str
    resolution: int
    window: str
    pretraining: str
    config: SwinV2Config
    resize_shortest: int | None
    hub_id: str = ""
    timm_id: str = ""
    url: str = ""
    interpolation: str = "bicubic"

    @property
    def window_size(self) -> int:
        """Side in tokens of the attention window."""
        return self.config.window_size


def find_variant(size: str, resolution: int | None = None, window: int | str | None = None) -> Variant:
    """The one variant of a size, resolution and window.

    Args:
        size: Size such as ``"base"``, or the full name of a variant.
        resolution: Side in px; may be left out where the size exists at one resolution only.
        window: ``16`` or ``"16"`` for a model trained with that window throughout, ``"12to16"`` for one that grew into it.

    Raises:
        VariantError: When nothing or more than one fits; the message lists the choices and what to type.
    """
    wanted = size.strip().lower()
    if wanted in VARIANTS:
        candidates = [VARIANTS[wanted]]
    elif wanted in ("huge", "giant"):  # only SimMIM published these, so the short name is unambiguous
        candidates = [variant for variant in VARIANTS.values() if variant.size == f"simmim-{wanted}"]
    else:
        candidates = [variant for variant in VARIANTS.values() if variant.size == wanted]
    if not candidates:
        raise VariantError(f"There is no size {size!r}. Choose one of {_join(_sizes())}, or the full name of a variant.")
    asked = f"{size} at {resolution} px" if resolution is not None else size
    fitting = [variant for variant in candidates if resolution in (None, variant.resolution)]
    if not fitting:
        raise VariantError(f"There is no {asked}. Of this size exist:{_listing(candidates)}\nGive one of these resolutions.")
    if window is not None:
        asked += f" with window {window}"
        windows = fitting
        fitting = [variant for variant in windows if variant.window == str(window).strip().lower()]
        if not fitting:
            raise VariantError(f"There is no {asked}. There are:{_listing(windows)}\nGive one of them with {_hint(windows)}.")
    if len(fitting) > 1:
        raise VariantError(f"{asked} names {len(fitting)} models:{_listing(fitting)}\nChoose with {_hint(fitting)}.")
    return fitting[0]


def _sizes() -> list[str]:
    return list(dict.fromkeys(variant.size for variant in VARIANTS.values()))


def _listing(variants: list[Variant]) -> str:
    rows = [(f"{v.resolution} px", f"window {v.window}", v.name, v.pretraining) for v in variants]
    return "".join(f"\n  {size:<7} {window:<14} {name:<52} {pretraining}" for size, window, name, pretraining in rows)


def _hint(variants: list[Variant]) -> str:
    options = []
    if len({variant.resolution for variant in variants}) > 1:
        options.append("--res " + " or ".join(dict.fromkeys(str(variant.resolution) for variant in variants)))
    if len({variant.window for variant in variants}) > 1:
        options.append("--window " + " or ".join(dict.fromkeys(variant.window for variant in variants)))
    return ", ".join(options) if options else f"--window {variants[0].window}"


def _join(words: list[str]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


def _config(size: str, resolution: int, window: int, classes: int, pretrained: tuple[int, ...] | None = None) -> SwinV2Config:
    embed_dim, depths, heads = _WIDTHS[size]
    return make_config(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=heads,
        window_size=window,
        image_size=resolution,
        pretrained_window_sizes=pretrained,
        task="classification" if classes else "encoder",
        num_classes=classes,
    )


def _imagenet(size: str, resolution: int, window: int, *, classes: int = 1000, grown: bool = False) -> Variant:
    label = f"12to{window}" if grown else str(window)
    suffix = f"{label}-192to{resolution}-22kto1k-ft" if grown else f"{label}-{resolution}" + ("-22k" if classes > 1000 else "")
    name = f"swinv2-{size}-patch4-window{suffix}"
    timm = f"swinv2_{size}_window{label}_{'192to' if grown else ''}{resolution}"
    tag = "ms_in22k_ft_in1k" if grown else "ms_in22k" if classes > 1000 else "ms_in1k"
    trained = "ImageNet-22K (21,841 classes)" if classes > 1000 else "ImageNet-1K"
    return Variant(
        name=name,
        size=size,
        resolution=resolution,
        window=label,
        pretraining="ImageNet-22K at 192 px with window 12, then ImageNet-1K" if grown else trained,
        config=_config(size, resolution, window, classes, PRETRAINED_AT_192 if grown else None),
        resize_shortest=None if resolution == 384 else _resize_shortest(resolution),
        hub_id=f"microsoft/{name}",
        timm_id=f"{timm}.{tag}",
        url=MICROSOFT_RELEASE + name.replace("-", "_") + ".pth",
    )


def _simmim(size: str, *, fine_tuned: bool) -> Variant:
    resolution, window = (224, 14) if fine_tuned else (192, 12)
    kind = "finetune" if fine_tuned else "pretrain"
    return Variant(
        name=f"simmim-{size}-{kind}-patch4-window{window}-{resolution}",
        size=f"simmim-{size}",
        resolution=resolution,
        window="12to14" if fine_tuned else "12",
        pretraining="SimMIM, then ImageNet-1K" if fine_tuned else "SimMIM (encoder without classifier)",
        config=_config(size, resolution, window, 1000 if fine_tuned else 0, PRETRAINED_AT_192 if fine_tuned else None),
        resize_shortest=_resize_shortest(resolution),
        hub_id=SIMMIM_HUB_ID,
        url=f"https://huggingface.co/{SIMMIM_HUB_ID}/tree/main/simmim_swinv2_{kind}_models",
    )


def _nano() -> Variant:
    config = make_config(
        embed_dim=64,
        depths=(2, 2, 2),
        num_heads=(2, 4, 8),
        window_size=8,
        image_size=128,
        pretrained_window_sizes=(8, 8, 8),
        num_classes=10,
    )
    return Variant(
        name="nano",
        size="nano",
        resolution=128,
        window="8",
        pretraining="this project's own small model, 10 classes",
        config=config,
        resize_shortest=_resize_shortest(128),
    )


def _resize_shortest(resolution: int) -> int:
    """The published evaluations crop the center 224/256 of the short side."""
    return int(256 / 224 * resolution)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        *(_imagenet(size, 256, window) for size in ("tiny", "small", "base") for window in (8, 16)),
        *(_imagenet(size, 192, 12, classes=21841) for size in ("base", "large")),
        *(_imagenet(size, 256, 16, grown=True) for size in ("base", "large")),
        *(_imagenet(size, 384, 24, grown=True) for size in ("base", "large")),
        *(_simmim(size, fine_tuned=False) for size in ("small", "base", "large", "huge", "giant")),
        *(_simmim(size, fine_tuned=True) for size in ("small", "base", "large", "huge", "giant")),
        _nano(),
    )
}
"""Every variant by name, in the order a list shows them."""
