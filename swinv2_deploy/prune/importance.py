"""How much a model needs each of its heads and hidden units.

A unit is thought of with a gate in front of the layer that reads it. The loss of an image changes by about the gradient of that
gate when the gate is closed; ``taylor`` is the mean over images of its square. Squares add where effects are independent, so a
group of hidden units is worth the sum of its units, and units of any two layers can be compared.

Where images have labels that a classifier knows, the loss is its cross entropy. A classifier without labels is asked for one of its
own answers, drawn by its own probabilities; other models for a random direction of their outputs, for which the mean square is the
change of the outputs themselves.

Shape letters: B images of a batch, n windows of an image, N tokens of a window, k heads, d channels of a head, M hidden units.

Source: Molchanov et al., arXiv:1906.10771 (squared first-order Taylor); Michel et al., arXiv:1905.10650 (gates of heads); Sun et
al., arXiv:2306.11695 (norm of the activation times norm of the weight that reads it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_model.model import EncoderOutput, SwinV2
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.prune.spec import CRITERIA, Criterion
from swinv2_deploy.prune.units import KINDS, LAYER, Block, Kind, blocks_of, channels_of, module_of, units_of

Scores = Mapping[Kind, Mapping[Block, tuple[float, ...]]]

Inputs = tuple[Tensor, ...]
"""What a model is called with: images (B, 3, H, W), and for a masked image model its mask."""

Batch = tuple[Inputs, Tensor | None]
"""Inputs, and the class of each image (B,) or None."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """What every unit is worth.

    Attributes:
        criterion: How it was judged.
        scores: By kind and block, one number a unit.
        images: Images it was measured on.
        loss: What was differentiated, in words; empty for criteria without gradients.
    """

    criterion: Criterion
    scores: Scores
    images: int
    loss: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "criterion": self.criterion,
            "meaning": CRITERIA[self.criterion],
            "images": self.images,
            "loss": self.loss,
            "blocks": [
                {
                    "stage": at[0],
                    "block": at[1],
                    "heads": list(self.scores["heads"][at]),
                    "hidden": list(self.scores["hidden"][at]),
                }
                for at in self.scores["heads"]
            ],
        }


@dataclass(slots=True)
class _Sums:
    """Running sums of one number a unit."""

    values: dict[tuple[Kind, Block], Tensor] = field(default_factory=dict)

    def add(self, kind: Kind, at: Block, values: Tensor) -> None:
        """Add (units,) to the sums of a block, in double precision."""
        values = values.detach().double().cpu()
        known = self.values.get((kind, at))
        self.values[kind, at] = values if known is None else known + values

    def scores(self, count: int) -> dict[Kind, dict[Block, tuple[float, ...]]]:
        """Means."""
        found: dict[Kind, dict[Block, tuple[float, ...]]] = {kind: {} for kind in KINDS}
        for (kind, at), total in self.values.items():
            found[kind][at] = tuple((total / count).tolist())
        return {kind: dict(sorted(blocks.items())) for kind, blocks in found.items()}


def measure(
    model: SwinV2,
    batches: Callable[[], Iterable[Batch]],
    criterion: Criterion,
    *,
    count: int,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Importance:
    """Judge every head and hidden unit of a model. Memory does not grow with the number of images.

    Args:
        model: Reference model, in evaluation mode.
        batches: Function that starts over the images; not called by criteria that look at no image.
        criterion: How.
        count: Images there are, for the progress.
        seed: Seed of what is random.
        progress: Called with images done and in all.

    Raises:
        UnsupportedModelError: When an image gives no finite number.
    """
    if criterion == "random":
        return Importance(criterion=criterion, scores=_drawn(model, seed), images=0)
    if criterion == "magnitude":
        return Importance(criterion=criterion, scores=_magnitudes(model), images=0)
    sums, done, loss = _Sums(), 0, ""
    for index, (inputs, labels) in enumerate(batches()):
        if criterion == "taylor":
            loss = _taylor(model, inputs, labels, sums, seed * 1_000_003 + index)
        else:
            _activations(model, inputs, sums)
        done += len(inputs[0])
        progress(done, count)
    scores = sums.scores(done)
    if criterion == "activation":
        scores = _shares(scores)
    wrong = [module_of(at) for blocks in scores.values() for at, values in blocks.items() if not all(map(_finite, values))]
    if wrong:
        raise UnsupportedModelError(
            f"The importance of {len(wrong)} blocks is no finite number, first at {wrong[0]}; check the weights and the images."
        )
    return Importance(criterion=criterion, scores=scores, images=done, loss=loss)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _taylor(model: SwinV2, inputs: Inputs, labels: Tensor | None, sums: _Sums, seed: int) -> str:
    """Add the squared gradients of the gates, for one batch; returns what the loss was."""
    images, *others = inputs
    images = images.detach().clone().requires_grad_()
    batch = len(images)
    # Gradients of the weights are not wanted: without them only activations are kept.
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)

    def watch(kind: Kind, at: Block, x: Tensor) -> None:
        d = channels_of(model.config, kind, at)

        def keep(gradient: Tensor) -> None:
            # Tokens of an image lie together: windows (B*n, N, k*d), or the map (B, H, W, M).
            gates = (x.detach() * gradient).reshape(batch, -1, x.shape[-1] // d, d).sum(dim=(1, 3))
            sums.add(kind, at, gates.double().square().sum(dim=0))

        x.register_hook(keep)  # type: ignore[no-untyped-call]  # torch's own

    try:
        with torch.enable_grad(), _inputs_of_layers(model, watch):
            outputs = model(images, *others)
            loss, name = _loss(outputs, labels, seed)
            torch.autograd.backward(loss)
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
    return name


def _loss(outputs: object, labels: Tensor | None, seed: int) -> tuple[Tensor, str]:
    """Sum over images of what is differentiated, and its name."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(outputs, Tensor) and outputs.ndim == 2:
        if labels is not None:
            return F.cross_entropy(outputs, labels.to(outputs.device), reduction="sum"), "cross entropy with the labels"
        drawn = torch.multinomial(outputs.detach().float().softmax(dim=-1).cpu(), 1, generator=generator)[:, 0]
        return (
            F.cross_entropy(outputs, drawn.to(outputs.device), reduction="sum"),
            "cross entropy with an answer drawn by the model's own probabilities",
        )
    total = torch.zeros(())
    for output in tensors_of(outputs):
        # Each image's output in units of its size, in a random direction of unit length.
        size = output.detach().flatten(1).norm(dim=1).clamp(min=1e-12)
        direction = torch.randn(output.shape, generator=generator).to(output.device)
        total = total + ((output * direction).flatten(1).sum(dim=1) / size).sum()
    return total, "a random direction of the outputs"


def tensors_of(outputs: object) -> Sequence[Tensor]:
    """What a model of any task returns, as tensors."""
    if isinstance(outputs, EncoderOutput):
        return (outputs.last_hidden_state,)
    if isinstance(outputs, dict):
        return tuple(outputs.values())
    if isinstance(outputs, Tensor):
        return (outputs,)
    raise UnsupportedModelError(
        f"The model returned {type(outputs).__name__}; expected a tensor, feature maps or an encoder's output."
    )


@torch.no_grad()
def _activations(model: SwinV2, inputs: Inputs, sums: _Sums) -> None:
    """Add the mean square of what every unit gives to its reader, each channel times the norm of the weights that read it."""
    batch = len(inputs[0])

    def watch(kind: Kind, at: Block, x: Tensor) -> None:
        d = channels_of(model.config, kind, at)
        weight = model.get_parameter(f"{module_of(at)}.{LAYER[kind]}.weight")
        read = weight.double().square().sum(dim=0)
        power = x.reshape(batch, -1, x.shape[-1]).double().square().mean(dim=1).sum(dim=0) * read
        sums.add(kind, at, power.view(-1, d).sum(dim=1))

    with _inputs_of_layers(model, watch):
        model(*inputs)


@contextmanager
def _inputs_of_layers(model: SwinV2, watch: Callable[[Kind, Block, Tensor], None]) -> Iterator[None]:
    """Show ``watch`` what enters the layers that read units."""
    handles = []
    for kind in KINDS:
        for at in blocks_of(model.config):

            def hook(_: nn.Module, arguments: tuple[Tensor, ...], kind: Kind = kind, at: Block = at) -> None:
                watch(kind, at, arguments[0])

            handles.append(model.get_submodule(f"{module_of(at)}.{LAYER[kind]}").register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shares(scores: Mapping[Kind, Mapping[Block, tuple[float, ...]]]) -> dict[Kind, dict[Block, tuple[float, ...]]]:
    """Scores as shares of their layer: a LayerNorm behind it takes its scale away."""
    return {
        kind: {at: tuple(value / max(sum(values), 1e-300) for value in values) for at, values in blocks.items()}
        for kind, blocks in scores.items()
    }


def _drawn(model: SwinV2, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: {
            at: tuple(torch.rand(units_of(model.config, kind, at), generator=generator).tolist())
            for at in blocks_of(model.config)
        }
        for kind in KINDS
    }


@torch.no_grad()
def _magnitudes(model: SwinV2) -> Scores:
    """Sum of squares of the weights that belong to a unit, as a share of those of all units of its layer."""
    found: dict[Kind, dict[Block, tuple[float, ...]]] = {kind: {} for kind in KINDS}
    state = {name: value.detach().double() for name, value in model.state_dict().items()}
    for at in blocks_of(model.config):
        name, k = module_of(at), units_of(model.config, "heads", at)
        qkv, proj = state[f"{name}.attn.qkv.weight"], state[f"{name}.attn.proj.weight"]
        made = qkv.square().sum(dim=1).view(3, k, -1).sum(dim=(0, 2))
        read = proj.square().sum(dim=0).view(k, -1).sum(dim=1)
        found["heads"][at] = tuple((made + read).tolist())
        fc1, fc2 = state[f"{name}.mlp.fc1.weight"], state[f"{name}.mlp.fc2.weight"]
        found["hidden"][at] = tuple((fc1.square().sum(dim=1) + fc2.square().sum(dim=0)).tolist())
    return _shares(found)
