"""Tensors that follow from a shape alone, cached and shared by every model in the process."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def constant(make: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """Decorator of a cached function: its tensors are plain ones on the CPU, whatever mode the first caller is in.

    A tensor made under ``torch.inference_mode`` can never take part in training, and one made under a default device stays
    there; without this, the first caller would decide for all later ones.
    """

    @wraps(make)
    def plain(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return make(*args, **kwargs)

    return plain
