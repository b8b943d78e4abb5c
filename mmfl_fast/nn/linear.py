"""Linear layers and perceptrons as pure functions of named parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def init_linear(
    name: str, inputs: int, outputs: int, generator: torch.Generator, *, relu: bool = False
) -> dict[str, Tensor]:
    """Weights ``[outputs, inputs]`` and a zero bias ``[outputs]``, float32.

    Normal weights of variance ``1 / inputs``, or ``2 / inputs`` in front of a ReLU (He et al. 2015), which
    keep the scale of activations through any depth.
    """
    spread = math.sqrt((2.0 if relu else 1.0) / inputs)
    return {
        f"{name}.weight": torch.randn(outputs, inputs, generator=generator) * spread,
        f"{name}.bias": torch.zeros(outputs),
    }


def linear(params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """``x W^T + b``: ``[B, inputs]`` to ``[B, outputs]``."""
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def init_mlp(name: str, width: int, layers: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Layers ``name.0`` to ``name.<layers-1>``, each ``width`` to ``width``, for :func:`mlp`."""
    params: dict[str, Tensor] = {}
    for i in range(layers):
        params |= init_linear(f"{name}.{i}", width, width, generator, relu=i < layers - 1)
    return params


def mlp(params: Mapping[str, Tensor], name: str, layers: int, x: Tensor) -> Tensor:
    """Perceptron with a ReLU between layers and none behind the last: ``[B, width]`` to ``[B, width]``."""
    for i in range(layers):
        x = linear(params, f"{name}.{i}", x if i == 0 else F.relu(x))
    return x
