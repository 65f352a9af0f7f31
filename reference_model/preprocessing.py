"""From a photograph to the pixels the model was trained on.

Two published recipes: 192- and 256-px models resize the short side a little beyond the crop (bicubic) and crop the center; 384-px
models squash the whole image to a square. Resizing is Pillow's antialiased bicubic on uint8, as in training.

Shape letters: H W height and width in px.

Source: microsoft/Swin-Transformer data/build.py and config.py (f82860b): ``TEST.CROP``, ``int((256 / 224) * IMG_SIZE)``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 64_000_000
"""Largest image decoded, in px; a compressed bomb of some KiB can otherwise take GiB."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_RESAMPLING: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class ImageError(ValueError):
    """An image file that cannot be read, or is too large to be read safely."""


class PreprocessingError(ValueError):
    """A preprocessing description that is incomplete or contradicts itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an image becomes model input.

    Attributes:
        size: (height, width) in px of the model input.
        resize_shortest: The short side is resized to this many px and the center of ``size`` is cropped; None squashes the whole
            image to ``size``.
        interpolation: Pillow filter, antialiased.
        mean: Per-channel mean subtracted after scaling to [0, 1], RGB.
        std: Per-channel divisor, RGB.
    """

    size: tuple[int, int]
    resize_shortest: int | None
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise PreprocessingError(f"size is {self.size}; expected (height, width) in px, both positive.")
        if self.resize_shortest is not None and self.resize_shortest < max(self.size):
            raise PreprocessingError(
                f"resize_shortest is {self.resize_shortest} px, below the crop of {self.size}; use at least {max(self.size)}."
            )
        if self.interpolation not in _RESAMPLING:
            raise PreprocessingError(f"interpolation is {self.interpolation!r}; expected one of {sorted(_RESAMPLING)}.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise PreprocessingError(f"mean {self.mean} and std {self.std} need three numbers each, and std above 0.")

    @classmethod
    def published(cls, resolution: int) -> Preprocessing:
        """The recipe of the published models at ``resolution`` px: squash from 384 up, resize and center crop below."""
        if resolution >= 384:
            return cls(size=(resolution, resolution), resize_shortest=None)
        return cls(size=(resolution, resolution), resize_shortest=int(256 / 224 * resolution))

    def resized_to(self, height: int, width: int) -> Preprocessing:
        """The same recipe for another input size: the share that the crop keeps stays."""
        shortest = self.resize_shortest
        if shortest is not None:
            shortest = max(round(shortest * max(height, width) / max(self.size)), height, width)
        return Preprocessing(
            size=(height, width),
            resize_shortest=shortest,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop (H, W, 3) uint8 RGB to ``size``."""
        height, width = self.size
        picture = Image.fromarray(image)
        if self.resize_shortest is None:
            return np.asarray(picture.resize((width, height), _RESAMPLING[self.interpolation]))
        short = min(picture.size)
        # The long side rounds down, as in torchvision's Resize, which the published numbers were measured with.
        full = (self.resize_shortest * picture.width // short, self.resize_shortest * picture.height // short)
        left, top = round((full[0] - width) / 2), round((full[1] - height) / 2)
        picture = picture.resize(full, _RESAMPLING[self.interpolation])
        return np.asarray(picture.crop((left, top, left + width, top + height)))

    def normalize(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, 3) uint8 RGB to (3, H, W) float32, normalized."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        pixels = (image.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, 3) uint8 RGB of any size to model input (3, height, width) float32."""
        return self.normalize(self.resize(image))

    def to_huggingface(self) -> dict[str, Any]:
        """Content of ``preprocessor_config.json`` that transformers' ``ViTImageProcessor`` and transformers.js read.

        ``crop_pct`` says what their ``size`` cannot: how far the short side is resized before the crop.
        """
        height, width = self.size
        config: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": int(_RESAMPLING[self.interpolation]),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if self.resize_shortest is not None:
            config |= {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": self.resize_shortest},
                "do_center_crop": True,
                "crop_size": {"height": height, "width": width},
                "do_convert_rgb": True,
            }
        return config

    @classmethod
    def from_huggingface(cls, config: dict[str, Any]) -> Preprocessing:
        """Read a ``preprocessor_config.json`` of a SwinV2 checkpoint.

        Raises:
            PreprocessingError: On a key that is missing or a recipe this project does not reproduce.
        """
        try:
            size = config["size"]
            crop = config.get("crop_size") if config.get("do_center_crop") else None
            names = {int(value): name for name, value in _RESAMPLING.items()}
            if isinstance(size, int):
                size = {"height": size, "width": size}
            if crop is not None:
                crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
                shortest = int(size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"]))
                target = (int(crop["height"]), int(crop["width"]))
            else:
                shortest = None
                target = (int(size["height"]), int(size["width"]))
            for flag in ("do_resize", "do_rescale", "do_normalize"):
                if not config.get(flag, True):
                    raise PreprocessingError(f"preprocessor_config.json has {flag} = false; only the full recipe is supported.")
            return cls(
                size=target,
                resize_shortest=shortest,
                interpolation=names[int(config.get("resample", 3))],  # type: ignore[arg-type]  # checked in __post_init__
                mean=tuple(float(value) for value in config["image_mean"]),  # type: ignore[arg-type]
                std=tuple(float(value) for value in config["image_std"]),  # type: ignore[arg-type]
            )
        except (KeyError, TypeError) as error:
            raise PreprocessingError(
                f"preprocessor_config.json lacks or mistypes {error}; expected size, resample, image_mean and image_std."
            ) from error


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8 RGB: orientation applied, alpha dropped, gray and CMYK converted, 16 bit scaled.

    Raises:
        ImageError: When the file is missing, no image, truncated, or larger than :data:`MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ImageError(
                        f"{path} is {picture.width}x{picture.height} px; images above {MAX_PIXELS:,} px are not decoded."
                    )
                upright = ImageOps.exif_transpose(picture)
                return np.asarray(_to_rgb(upright))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that Pillow can read; remove or replace it.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be decoded ({error}); the file is missing, truncated or damaged.") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float64)
        top = 65535.0 if picture.mode.startswith("I") else max(float(values.max(initial=0.0)), 1.0)
        picture = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
