"""How far a model drifts when some of its sites round to INT8, in PyTorch: the quick measure that sweeps and searches repeat.

``verify`` judges the files that ship, on other images; this tells which sites to look at, and which policy to write.

Shape letters: B images, K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.dataset import ImageFolder
from reference_model.model import EncoderOutput, SwinV2
from reference_model.preprocessing import Preprocessing, read_image
from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.modeling.fake_quant import fake_quantize, only_quantized, quantized_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteDrift:
    """Drift of a set of sites in INT8 from the model in float.

    Attributes:
        sqnr_db: Signal to noise of the first output over all images, in dB; infinite when nothing moved.
        agreement: Share of images with the same top-1; None when the model is no classifier.
        drop: Top-1 accuracy lost, in points; None without labels that the model knows.
    """

    sqnr_db: float
    agreement: float | None = None
    drop: float | None = None


class DriftProbe:
    """Images and a model whose sites can be rounded at will.

    Args:
        model: Reference model in float; a copy of it is used.
        ranges: Largest magnitude of every activation that enters a site, by name.
        images: Images to measure on, as batches (B, 3, H, W), normalized.
        labels: Class of each image, or None.

    Attributes:
        macs: Multiplications and additions of every site for one image, as a share of those of all sites.
        count: Number of images.
    """

    def __init__(
        self, model: SwinV2, ranges: Mapping[str, float], images: Sequence[Tensor], labels: Sequence[int] | None = None
    ) -> None:
        if not images:
            raise QuantizeError("There is no image to measure drift on; give more images with --data.")
        self._model = copy.deepcopy(model).eval()
        fake_quantize(self._model, ranges)
        self._images = images
        self._labels = None if labels is None else torch.tensor(labels)
        self._classifies = model.config.task == "classification"
        self.count = sum(len(batch) for batch in images)
        self.macs = _macs(self._model, images[0][:1])
        with only_quantized(self._model, ()):
            self._expected = self._outputs()

    def __call__(self, sites: Iterable[str]) -> SiteDrift:
        """Drift with these sites in INT8 and all others in float."""
        with only_quantized(self._model, sites):
            found = self._outputs()
        return drift_between(self._expected, found, self._labels if self._classifies else None, classifies=self._classifies)

    def share(self, sites: Iterable[str]) -> float:
        """Part of the work of all sites that these do."""
        return sum(self.macs[site] for site in sites)

    @torch.no_grad()
    def _outputs(self) -> Tensor:
        """First output of all images, (B, ...), flattened where images differ in nothing but their content."""
        return torch.cat([_first(self._model(batch)).flatten(1) for batch in self._images])


def drift_between(expected: Tensor, found: Tensor, labels: Tensor | None = None, *, classifies: bool) -> SiteDrift:
    """Drift of outputs (B, ...) from those of the model in float.

    Args:
        expected: Outputs in float.
        found: Outputs with rounding.
        labels: Class of each image, or None.
        classifies: Whether the outputs are logits (B, K).
    """
    noise = float((found.double() - expected.double()).square().sum())
    ratio = math.inf if noise == 0 else float(expected.double().square().sum()) / noise
    sqnr = -math.inf if ratio == 0 or not math.isfinite(noise) else 10 * math.log10(ratio)
    if not classifies:
        return SiteDrift(sqnr_db=sqnr)
    answers, before = found.argmax(dim=1), expected.argmax(dim=1)
    agreement = float((answers == before).float().mean())
    if labels is None:
        return SiteDrift(sqnr_db=sqnr, agreement=agreement)
    lost = int((before == labels).sum()) - int((answers == labels).sum())
    return SiteDrift(sqnr_db=sqnr, agreement=agreement, drop=100 * lost / len(labels))


def load_images(images: ImageFolder, preprocessing: Preprocessing, batch_size: int) -> list[Tensor]:
    """Batches (B, 3, H, W) of normalized pixels; all are kept in memory."""
    batches = []
    for start in range(0, len(images), batch_size):
        pixels = [torch.from_numpy(preprocessing(read_image(path))) for path in images.paths[start : start + batch_size]]
        batches.append(torch.stack(pixels))
    return batches


def known_labels(images: ImageFolder, names: Sequence[str]) -> list[int] | None:
    """Class of each image in the model's numbering; None when folders do not bear the names of the model's classes."""
    if not images.classes or not set(images.classes) <= set(names):
        return None
    return [names.index(images.classes[images.labels[name]]) for name in images.names]


def _first(outputs: object) -> Tensor:
    if isinstance(outputs, EncoderOutput):
        return outputs.last_hidden_state
    if isinstance(outputs, dict):
        return torch.cat([value.flatten(1) for value in outputs.values()], dim=1)
    if isinstance(outputs, Tensor):
        return outputs
    raise QuantizeError(f"The model returned {type(outputs).__name__}; expected a tensor, feature maps or an encoder's output.")


@torch.no_grad()
def _macs(model: nn.Module, image: Tensor) -> dict[str, float]:
    counts: dict[str, float] = {}
    hooks = []
    for name, layer in quantized_layers(model).items():

        def count(layer: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
            columns = layer.out_features if isinstance(layer, nn.Linear) else arguments[1].shape[-1]
            # Attention may come in several calls.
            counts[name] = counts.get(name, 0.0) + float(arguments[0].numel() * columns)

        hooks.append(layer.register_forward_pre_hook(count))
    model(image)
    for hook in hooks:
        hook.remove()
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}
