"""FedMVP's joint encoder: modalities that attend to each other, side by side (papers.md 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfl_fast.nn.attention import (
    init_layer_norm,
    init_transformer_layer,
    layer_norm,
    positions,
    transformer_layer,
)
from mmfl_fast.nn.linear import init_linear, linear

_CROSS_HEADS = 4
_JOINT_HEADS = 8
_JOINT_LAYERS = 3


def init_joint_encoder(
    name: str, features: Mapping[str, int], width: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters of :func:`joint_encoder`.

    Args:
        name: their prefix.
        features: modality -> size of one token.
        width: of a modality's tokens, a multiple of 8.
        generator: of the weights.
    """
    params: dict[str, Tensor] = {}
    for modality, size in features.items():
        params |= init_linear(f"{name}.embed.{modality}", size, width, generator)
        params |= init_transformer_layer(f"{name}.cross.{modality}", width, generator)
    params |= init_transformer_layer(f"{name}.self", width, generator)
    joint = width * len(features)
    for i in range(_JOINT_LAYERS):
        params |= init_transformer_layer(f"{name}.joint.{i}", joint, generator)
    return {**params, **init_layer_norm(f"{name}.norm", joint)}


def joint_encoder(params: Mapping[str, Tensor], name: str, tokens: Mapping[str, Tensor]) -> Tensor:
    """Tokens in which all modalities stand side by side.

    Tokens are embedded, scaled by ``1 / sqrt(width)`` and given positions; the first modality, in the paper
    the image, attends to itself; then each attends to all the others. The results are padded to one length
    and joined along the feature axis, and three layers attend to this joint input.

    Args:
        params: of :func:`init_joint_encoder`.
        name: their prefix.
        tokens: modality -> ``[B, T_m, D_m]``, in the order of the parameters.

    Returns:
        ``[B, max T_m, width * modalities]``.
    """
    length = max(x.shape[-2] for x in tokens.values())
    embedded: dict[str, Tensor] = {}
    for m, x in tokens.items():
        h = linear(params, f"{name}.embed.{m}", x)
        h = F.pad(h * h.shape[-1] ** -0.5, (0, 0, 0, length - x.shape[-2]))
        embedded[m] = h + positions(length, h.shape[-1], h)
    first = next(iter(embedded))
    embedded[first] = transformer_layer(
        params, f"{name}.self", _CROSS_HEADS, embedded[first], embedded[first]
    )
    crossed = []
    for m, h in embedded.items():
        others = [x for other, x in embedded.items() if other != m] or [h]
        crossed.append(
            transformer_layer(params, f"{name}.cross.{m}", _CROSS_HEADS, h, torch.cat(others, dim=-2))
        )
    joint = torch.cat(crossed, dim=-1)
    x = joint
    for i in range(_JOINT_LAYERS):
        x = transformer_layer(params, f"{name}.joint.{i}", _JOINT_HEADS, x, joint)
    return layer_norm(params, f"{name}.norm", x)
