"""Removing units: a smaller config with the weights that are left, or the same model with those units silenced.

Both compute the same: a head that gives zero to the projection, and a hidden unit that gives zero to the second linear layer, add
nothing there, wherever their other weights are.

Shape letters: k heads, d channels of a head, C channels of a stage, M hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2, build_model
from swinv2_deploy.prune.plan import PrunePlan
from swinv2_deploy.prune.units import KINDS, LAYER, blocks_of, channels_of, module_of, units_of


def cut_config(config: SwinV2Config, plan: PrunePlan) -> SwinV2Config:
    """The config of what a plan leaves.

    Raises:
        SpecError: When the plan is for another architecture.
    """
    plan.check(config)
    heads, hidden = (
        tuple(tuple(len(kept[stage, block]) for block in range(depth)) for stage, depth in enumerate(config.running_depths))
        for kept in (plan.heads, plan.hidden)
    )
    idle = config.running_stages
    return replace(config, num_heads=heads + config.num_heads[idle:], mlp_hidden=hidden + config.mlp_hidden[idle:])


def cut(model: SwinV2, plan: PrunePlan) -> SwinV2:
    """A smaller model with the weights of the units that a plan keeps, in evaluation mode. The given model is left alone.

    Raises:
        SpecError: When the plan is for another architecture.
    """
    config = cut_config(model.config, plan)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for at in blocks_of(model.config):
        name = module_of(at)
        heads, hidden = torch.tensor(plan.heads[at]), torch.tensor(plan.hidden[at])
        k, d = units_of(model.config, "heads", at), channels_of(model.config, "heads", at)
        channels = _channels(heads, d)
        rows = torch.cat([channels + part * k * d for part in range(3)])  # of queries, keys and values
        chosen: dict[str, tuple[int, Tensor]] = {
            "attn.logit_scale": (0, heads),
            "attn.cpb_mlp.2.weight": (0, heads),
            "attn.qkv.weight": (0, rows),
            "attn.q_bias": (0, channels),
            "attn.v_bias": (0, channels),
            "attn.proj.weight": (1, channels),
            "mlp.fc1.weight": (0, hidden),
            "mlp.fc1.bias": (0, hidden),
            "mlp.fc2.weight": (1, hidden),
        }
        for part, (dimension, indices) in chosen.items():
            key = f"{name}.{part}"
            if key in state:
                state[key] = state[key].index_select(dimension, indices)
    made = build_model(config)
    made.load_state_dict({key: value.clone() for key, value in state.items()})
    return made.eval()


@contextmanager
def masked(model: SwinV2, plan: PrunePlan) -> Iterator[None]:
    """Silence the units that a plan removes, without removing them, while the context lasts.

    Raises:
        SpecError: When the plan is for another architecture.
    """
    plan.check(model.config)
    handles = []
    for kind in KINDS:
        for at, indices in plan.kept(kind).items():
            gate = torch.zeros(units_of(model.config, kind, at))
            gate[list(indices)] = 1
            layer = model.get_submodule(f"{module_of(at)}.{LAYER[kind]}")
            gates = gate.repeat_interleave(channels_of(model.config, kind, at))
            handles.append(layer.register_forward_pre_hook(_silencer(gates)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _silencer(gates: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def silence(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        # Chosen, not multiplied: nothing of a silenced unit may get through, not even what is no number.
        return (arguments[0].masked_fill(gates.to(arguments[0].device) == 0, 0.0),)

    return silence


def _channels(heads: Tensor, width: int) -> Tensor:
    """Channels of heads of ``width`` channels each."""
    return (heads[:, None] * width + torch.arange(width)).flatten()
