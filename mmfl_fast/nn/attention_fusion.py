"""Additive self-attention over the steps of all modalities, the fusion of FedMultimodal (papers.md 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfl_fast.nn.linear import init_linear, linear

# Of the benchmark; its softmax is 0 in every dtype beside any score that is not masked.
_MASKED_SCORE = -1e5


def init_attention_fusion(
    name: str, width: int, hidden: int, heads: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Layers ``name.hidden``, ``width`` to ``hidden``, and ``name.score``, ``hidden`` to ``heads``.

    The scores have no bias: it would raise all steps of a head alike, which the softmax undoes.
    """
    return {
        **init_linear(f"{name}.hidden", width, hidden, generator),
        f"{name}.score.weight": torch.randn(heads, hidden, generator=generator) * hidden**-0.5,
    }


def attention_fusion(
    params: Mapping[str, Tensor], name: str, steps: Sequence[Tensor], present: Tensor
) -> Tensor:
    """One weighted mean over all steps per head, side by side.

    The weights of head j are the softmax over the steps of ``<score_j, tanh(hidden(x))>``.

    Args:
        params: of :func:`init_attention_fusion`.
        name: their prefix.
        steps: M tensors ``[B, T_m, width]``.
        present: bool ``[B, M]``; an absent modality has weight 0 and gets no gradient.

    Returns:
        ``[B, heads * width]``; zero for a row without any modality.
    """
    there = torch.cat(
        [here.unsqueeze(1).expand(x.shape[:2]) for x, here in zip(steps, present.unbind(1), strict=True)],
        dim=1,
    ).unsqueeze(2)
    x = torch.where(there, torch.cat(list(steps), dim=1), 0.0)
    hidden = torch.tanh(linear(params, f"{name}.hidden", x))
    scores = F.linear(hidden, params[f"{name}.score.weight"])
    weights = torch.where(there, scores, _MASKED_SCORE).softmax(dim=1)
    return (weights.transpose(1, 2) @ x).flatten(1)
