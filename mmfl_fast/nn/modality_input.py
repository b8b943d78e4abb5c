"""Input layers of each modality into one common width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmfl_fast.nn.linear import init_linear, linear


def init_modality_input(
    name: str, features: Mapping[str, int], width: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """One linear layer ``<name>.<modality>`` per modality, from its number of features to ``width``."""
    params: dict[str, Tensor] = {}
    for modality, size in features.items():
        params |= init_linear(f"{name}.{modality}", size, width, generator, relu=True)
    return params


def modality_input(
    params: Mapping[str, Tensor], name: str, values: Mapping[str, Tensor], present: Tensor
) -> Tensor:
    """Mean over the modalities that are there of their linear embeddings.

    Args:
        params: holds ``<name>.<modality>.weight`` and ``.bias``.
        name: part that the layers belong to.
        values: modality -> ``[B, ...]``; everything behind the first axis is flattened.
        present: bool ``[B, M]``, in the order of ``values``.

    Returns:
        ``[B, width]``; zero for a row without any modality.
    """
    weights = present.to(next(iter(values.values())).dtype)
    embedded = [
        weights[:, m : m + 1] * linear(params, f"{name}.{modality}", x.flatten(1))
        for m, (modality, x) in enumerate(values.items())
    ]
    return torch.stack(embedded).sum(dim=0) / weights.sum(dim=1, keepdim=True).clamp(min=1)
