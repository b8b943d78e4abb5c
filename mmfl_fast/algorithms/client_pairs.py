"""K x K matrices over all clients of a federation, of which a round tells those that took part."""

from __future__ import annotations

import torch
from torch import Tensor


def unknown_pairs(count: int) -> Tensor:
    """NaN ``[count, count]``, float64."""
    return torch.full((count, count), torch.nan, dtype=torch.float64)


def known_pairs(matrix: Tensor, members: Tensor, count: int) -> Tensor:
    """Spread a matrix over ``members``, ``[K, K]``, to ``[count, count]``; NaN for who did not take part."""
    full = unknown_pairs(count)
    full[members.unsqueeze(1), members] = matrix.cpu()
    return full
