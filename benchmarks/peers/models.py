"""The measured model in each implementation, all with the same weights; and the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.peers.cases import CALIBRATION_IMAGES, DRIFT_IMAGES, SEED, Case
from reference_model.checkpoint import config_to_huggingface, state_to_huggingface
from reference_model.model import SwinV2, build_model
from reference_model.preprocessing import read_image
from reference_model.variants import VARIANTS
from swinv2_deploy.artifacts import WeightsOrigin
from swinv2_deploy.modeling.source import Source, published_preprocessing

WEIGHTS = "model.safetensors"
PHOTOS = "photos"
"""Folder of the calibration images, for this project's ``quantize``."""


def write_weights(case: Case, folder: Path) -> None:
    """Write the weights, the calibration images as files and as pixels, and the images that drift is measured on."""
    with torch.device("meta"):
        model = build_model(case.config)
    model = model.to_empty(device="cpu").eval()
    randomize(model, SEED)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    preprocessing = published_preprocessing(VARIANTS[case.variant])
    (folder / PHOTOS).mkdir()
    files = []
    for number in range(CALIBRATION_IMAGES + DRIFT_IMAGES):
        files.append(folder / (PHOTOS if number < CALIBRATION_IMAGES else "") / f"{number:02}.png")
        Image.fromarray(picture(SEED + 1 + number)).save(files[-1])
    pixels = np.stack([preprocessing(read_image(file)) for file in files])
    np.save(folder / "calibration.npy", pixels[:CALIBRATION_IMAGES])
    np.save(folder / "drift.npy", pixels[CALIBRATION_IMAGES:])


def randomize(model: nn.Module, seed: int) -> None:
    """Make every parameter matter: post-norm gains around one, logit scales from cool to beyond the clamp."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("logit_scale"):
                parameter.copy_(2.5 + 1.5 * noise)
                if int(name.split(".")[3]) % 2:
                    # Shifted: where a head is sharp, masked pairs leak through -100, and transformers masks with -200.
                    parameter.clamp_(max=3.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)


def picture(seed: int) -> NDArray[np.uint8]:
    """A picture (480, 640, 3) of smooth blobs, edges and noise: no photograph, but with structure at every scale."""
    generator = np.random.default_rng(seed)
    layers = np.zeros((480, 640, 3))
    for cells in (2, 5, 12, 40, 160):
        coarse = generator.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        layers += np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC), np.float64) / cells**0.3
    low, high = layers.min(), layers.max()
    pixels: NDArray[np.uint8] = ((layers - low) * (255 / (high - low))).astype(np.uint8)
    return pixels


def source(case: Case, folder: Path) -> Source:
    """Our reference model, as ``export`` takes it."""
    model: SwinV2 = build_model(case.config).eval()
    model.load_state_dict(load_file(folder / WEIGHTS))
    return Source(
        model=model,
        preprocessing=published_preprocessing(VARIANTS[case.variant]),
        origin=WeightsOrigin(kind="untrained", source=f"seed {SEED}, every parameter random"),
        name=case.name,
        seed=SEED,
    )


def timm_model(case: Case, folder: Path) -> nn.Module:
    """timm's model; strict loading, so that no weight is left out."""
    import timm

    state: dict[str, Tensor] = {}
    for name, value in load_file(folder / WEIGHTS).items():
        parts = name.split(".")
        if "downsample" in parts:  # timm's patch merging opens the next stage
            parts[1] = str(int(parts[1]) + 1)
        state[("head.fc." + parts[1]) if parts[0] == "head" else ".".join(parts)] = value
    model: nn.Module = timm.create_model(case.timm_name, num_classes=case.config.num_classes)
    model.load_state_dict(state, strict=True)
    return model.eval()


class LogitsOnly(nn.Module):
    """transformers' classifier with a tensor as its answer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        logits: Tensor = self.model(pixel_values).logits
        return logits


def transformers_model(case: Case, folder: Path) -> nn.Module:
    """transformers' model; strict loading, so that no weight is left out."""
    from transformers import Swinv2Config, Swinv2ForImageClassification

    model = Swinv2ForImageClassification(Swinv2Config(**config_to_huggingface(case.config)))
    model.load_state_dict(state_to_huggingface(load_file(folder / WEIGHTS), case.config), strict=True)
    return LogitsOnly(model).eval()
