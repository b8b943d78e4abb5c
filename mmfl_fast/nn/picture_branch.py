"""The branches of 3FM's network for pictures: digits, hand signs, spectrograms (papers.md 2.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfl_fast.nn.convolutions import convolutions, init_convolutions

_FILTERS = (32, 64, 64)
# A map is halved as long as it is not below this; the printed branches end at 7 x 7.
_HALVED_FROM = 14
_SMALLEST_SIDE = 7


def init_picture_branch(name: str, shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of :func:`picture_branch` for pictures ``[H, W]`` or ``[C, H, W]``."""
    channels = 1 if len(shape) == 2 else shape[0]
    layers, side = _halvings(shape)
    params = init_convolutions(
        f"{name}.conv", [channels, *(_filters(i) for i in range(layers))], (3, 3), generator
    )
    if side > _SMALLEST_SIDE:
        last = _filters(layers - 1) if layers else channels
        spread = math.sqrt(1.0 / (4 * last))
        params[f"{name}.last.weight"] = torch.randn(last, last, 2, 2, generator=generator) * spread
        params[f"{name}.last.bias"] = torch.zeros(last)
    return params


def picture_branch(params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Convolutions of 3 x 3 with ReLU, each halved by pooling, down to fewer than 14 positions a side.

    A map that is then still larger than 7 passes one convolution of 2 x 2 without padding and without ReLU.
    For 28 x 28 and 64 x 64 these are the released network's branches, which end in 64 maps of 7 x 7.

    Args:
        params: of :func:`init_picture_branch`.
        name: their prefix.
        x: ``[B, H, W]`` or ``[B, C, H, W]``.

    Returns:
        ``[B, features]``, all maps side by side.
    """
    x = x.unsqueeze(1) if x.dim() == 3 else x
    layers, side = _halvings(x.shape[1:])
    x = convolutions(params, f"{name}.conv", layers, x)
    if side > _SMALLEST_SIDE:
        x = F.conv2d(x, params[f"{name}.last.weight"], params[f"{name}.last.bias"])
    return x.flatten(1)


def picture_features(shape: Sequence[int]) -> int:
    """Number of features :func:`picture_branch` makes of pictures of a shape."""
    layers, side = _halvings(shape)
    height, width = (-(-s // 2**layers) - (side > _SMALLEST_SIDE) for s in shape[-2:])
    channels = 1 if len(shape) == 2 else shape[0]
    return int((_filters(layers - 1) if layers else channels) * height * width)


def _halvings(shape: Sequence[int]) -> tuple[int, int]:
    """How often a picture is halved, and its shorter side afterwards."""
    layers, side = 0, min(shape[-2:])
    while side >= _HALVED_FROM:
        layers, side = layers + 1, -(-side // 2)
    return layers, side


def _filters(layer: int) -> int:
    return _FILTERS[min(layer, len(_FILTERS) - 1)]
