"""Two linear layers with a ReLU between them: vector encoders, classifiers, projection heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfl_fast.nn.linear import init_linear, linear


def init_two_layer(
    name: str, inputs: int, width: int, outputs: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Layers ``name.0``, ``inputs`` to ``width``, and ``name.1``, ``width`` to ``outputs``."""
    return {
        **init_linear(f"{name}.0", inputs, width, generator, relu=True),
        **init_linear(f"{name}.1", width, outputs, generator),
    }


def two_layer(params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """``W_1 relu(W_0 x + b_0) + b_1``: ``[..., inputs]`` to ``[..., outputs]``."""
    return linear(params, f"{name}.1", F.relu(linear(params, f"{name}.0", x)))
