"""From a photograph to the pixels the model was trained on.

Two published recipes: 192- and 256-px models resize the short side a little beyond the crop (bicubic) and crop the center;
384-px models squash the whole image to a square. Resizing is Pillow's antialiased bicubic on uint8, as in training.

Shape letters: H W height and width in px.

Source: microsoft/Swin-Transformer data/build.py and config.py (f82860b): ``TEST.CROP``, ``int((256 / 224) * IMG_SIZE)``.
"""

from __future__ import annotations

import math
import struct
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRAY_MEAN = (0.449,)
GRAY_STD = (0.226,)
"""Means over the three channels of the two above: what is assumed of a model that reads gray and says nothing."""
MAX_PIXELS = 64_000_000
"""Largest image decoded, in px; a compressed bomb of some KiB can otherwise take GiB."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_RESAMPLING: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    ArithmeticError,
    LookupError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on damaged files; which one depends on the format."""


class ImageError(ValueError):
    """An image file that cannot be read, or is too large to be read safely."""


class PreprocessingError(ValueError):
    """A preprocessing description that is incomplete or contradicts itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an image becomes model input.

    Attributes:
        size: (height, width) in px of the model input.
        resize_shortest: The short side is resized to this many px and the center of ``size`` is cropped; None squashes the
            whole image to ``size``.
        interpolation: Pillow filter, antialiased.
        mean: Per-channel mean subtracted after scaling to [0, 1], RGB; one number for a model that reads gray.
        std: Per-channel divisor, as many.
    """

    size: tuple[int, int]
    resize_shortest: int | None
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise PreprocessingError(f"size is {self.size}; expected (height, width) in px, both positive.")
        if self.resize_shortest is not None and self.resize_shortest < max(self.size):
            raise PreprocessingError(
                f"resize_shortest is {self.resize_shortest} px, below the crop of {self.size}; use at least {max(self.size)}."
            )
        if self.interpolation not in _RESAMPLING:
            raise PreprocessingError(f"interpolation is {self.interpolation!r}; expected one of {sorted(_RESAMPLING)}.")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not self.mean or len(self.mean) != len(self.std) or not finite or min(self.std) <= 0:
            raise PreprocessingError(
                f"mean {self.mean} and std {self.std} need a finite number for every channel, and std above 0."
            )

    @property
    def channels(self) -> int:
        """Channels of the model input: 3 for RGB, 1 for gray."""
        return len(self.mean)

    @classmethod
    def published(cls, resolution: int) -> Preprocessing:
        """The recipe of the published models at ``resolution`` px: squash from 384 up, resize and center crop below."""
        if resolution >= 384:
            return cls(size=(resolution, resolution), resize_shortest=None)
        return cls(size=(resolution, resolution), resize_shortest=int(256 / 224 * resolution))

    def with_channels(self, channels: int) -> Preprocessing:
        """The same recipe for a model that reads another number of channels and says nothing of their mean."""
        if channels == self.channels:
            return self
        known = {1: (GRAY_MEAN, GRAY_STD), 3: (IMAGENET_MEAN, IMAGENET_STD)}
        mean, std = known.get(channels, ((0.0,) * channels, (1.0,) * channels))
        return replace(self, mean=mean, std=std)

    def resized_to(self, height: int, width: int) -> Preprocessing:
        """The same recipe for another input size: the share that the crop keeps stays."""
        shortest = self.resize_shortest
        if shortest is not None:
            shortest = max(round(shortest * max(height, width) / max(self.size)), height, width)
        return replace(self, size=(height, width), resize_shortest=shortest)

    def require_photographs(self) -> None:
        """Refuse a model that photographs cannot be prepared for.

        Raises:
            PreprocessingError: When it reads neither three channels nor one.
        """
        if self.channels not in (1, 3):
            raise PreprocessingError(
                f"The model reads {self.channels} channels, and photographs make three, or one in gray: nothing that looks at "
                "photographs can be done with it here."
            )

    def in_channels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB as (H, W, C) uint8 of the channels that the model reads: itself, or Pillow's gray of it.

        Raises:
            ImageError: When the image has another shape or type, or no pixel.
            PreprocessingError: When the model reads neither three channels nor one.
        """
        self.require_photographs()
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
            raise ImageError(f"image is {image.dtype} of shape {image.shape}; expected uint8 (H, W, 3), at least one pixel.")
        if self.channels == 3:
            return image
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop (H, W, 3) uint8 RGB to ``size``, in the channels that the model reads, (height, width, C).

        Raises:
            ImageError: When the image has another shape or type, or no pixel.
            PreprocessingError: When the model reads neither three channels nor one.
        """
        pixels = self.in_channels(image)
        resized = self._resized(Image.fromarray(pixels if self.channels == 3 else pixels[:, :, 0]))
        return resized if self.channels == 3 else resized[:, :, None]

    def _resized(self, picture: Image.Image) -> NDArray[np.uint8]:
        height, width = self.size
        resample = _RESAMPLING[self.interpolation]
        if self.resize_shortest is None:
            return np.asarray(picture.resize((width, height), resample))
        short = min(picture.size)
        # Long side rounded down, crop offset rounded half to even: torchvision's Resize and CenterCrop, which the published
        # numbers were measured with.
        full = (self.resize_shortest * picture.width // short, self.resize_shortest * picture.height // short)
        left, top = round((full[0] - width) / 2), round((full[1] - height) / 2)
        if full[0] * full[1] > MAX_PIXELS:
            # A 1x20000 px image would grow to 1.7 Gpx: compute the crop alone. Pillow may then take the axes in another order,
            # which moves a smooth image by two gray levels at most.
            across, down = picture.width / full[0], picture.height / full[1]
            right, bottom = min((left + width) * across, picture.width), min((top + height) * down, picture.height)
            return np.asarray(picture.resize((width, height), resample, box=(left * across, top * down, right, bottom)))
        picture = picture.resize(full, resample)
        return np.asarray(picture.crop((left, top, left + width, top + height)))

    def normalize(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, C) uint8 to (C, H, W) float32, normalized."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        pixels = (image.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, 3) uint8 RGB of any size to model input (C, height, width) float32."""
        return self.normalize(self.resize(image))

    def to_huggingface(self) -> dict[str, Any]:
        """Content of ``preprocessor_config.json`` that transformers' ``AutoImageProcessor`` and transformers.js read.

        transformers' PIL back end computes the same pixels from it, with one exception: it rounds the crop offset down where
        torchvision rounds half to even, so a margin (resized side minus crop) of 4k+3 px is cropped one px further left or up.
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
            "do_convert_rgb": self.channels == 3,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if self.resize_shortest is not None:
            config |= {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": self.resize_shortest},
                "do_center_crop": True,
                "crop_size": {"height": height, "width": width},
            }
        return config

    @classmethod
    def from_huggingface(cls, config: Any) -> Preprocessing:
        """Read a ``preprocessor_config.json`` of a SwinV2 checkpoint.

        Raises:
            PreprocessingError: On a key that is missing or a recipe this project does not reproduce.
        """
        if not isinstance(config, dict):
            raise PreprocessingError(f"preprocessor_config.json holds a {type(config).__name__}; expected an object.")
        for flag in ("do_resize", "do_rescale", "do_normalize"):
            if not config.get(flag, True):
                raise PreprocessingError(f"preprocessor_config.json has {flag} = false; only the full recipe is supported.")
        names = {int(value): name for name, value in _RESAMPLING.items()}
        try:
            target, shortest = _huggingface_geometry(config)
            if not math.isclose(float(config.get("rescale_factor", 1 / 255)), 1 / 255, rel_tol=1e-5):
                raise PreprocessingError(
                    f"preprocessor_config.json has rescale_factor {config['rescale_factor']}; only 1/255 is supported."
                )
            if config["resample"] not in names:
                raise PreprocessingError(f"preprocessor_config.json has resample {config['resample']}; use one of {names}.")
            return cls(
                size=target,
                resize_shortest=shortest,
                interpolation=names[config["resample"]],  # type: ignore[arg-type]  # checked in __post_init__
                mean=tuple(float(value) for value in config["image_mean"]),
                std=tuple(float(value) for value in config["image_std"]),
            )
        except PreprocessingError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise PreprocessingError(
                f"preprocessor_config.json lacks or mistypes {error}; expected size, resample, image_mean and image_std."
            ) from error


def _huggingface_geometry(config: dict[str, Any]) -> tuple[tuple[int, int], int | None]:
    """The (height, width) of the input and the short side before the crop, or None for a squash, both in px."""
    size = config["size"]
    if not config.get("do_center_crop"):
        size = {"height": size, "width": size} if isinstance(size, int) else size
        return (int(size["height"]), int(size["width"])), None
    crop = config["crop_size"]
    target = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
    if isinstance(size, int) or "shortest_edge" in size:
        return target, int(size if isinstance(size, int) else size["shortest_edge"])
    if (int(size["height"]), int(size["width"])) != target:
        raise PreprocessingError(
            f"preprocessor_config.json squashes to {size} and then crops {target}; expected shortest_edge, or no crop."
        )
    return target, None


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8 RGB: orientation applied, alpha dropped, gray and CMYK converted, 16 bit scaled.

    Raises:
        ImageError: When the file is missing, no image, truncated, or larger than :data:`MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, which the limit below decides on, and of damaged metadata beside intact pixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
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
    except _DAMAGED as error:
        raise ImageError(f"{path} cannot be decoded ({error}); the file is missing, truncated or damaged.") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture).astype(np.float64))
        top = 65535.0 if picture.mode.startswith("I") else max(float(values.max(initial=0.0)), 1.0)
        picture = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
