"""Matrices over the pairs of a round's clients, n x n: of all that are registered they would be K x K."""

from __future__ import annotations

import torch
from torch import Tensor


def no_clients() -> Tensor:
    """The clients of a round before there was one, int64 ``[0]``."""
    return torch.empty(0, dtype=torch.int64)


def no_pairs() -> Tensor:
    """Their matrix, float64 ``[0, 0]``."""
    return torch.empty(0, 0, dtype=torch.float64)


def in_order(matrix: Tensor, members: Tensor) -> Tensor:
    """A matrix over ``members``, ``[n, n]``, with rows and columns in the order of their numbers."""
    order = members.argsort()
    return matrix.cpu()[order][:, order]


def among_all(matrix: Tensor, members: Tensor, count: int) -> Tensor:
    """Spread a matrix over ``members``, ascending, to ``[count, count]``; NaN for who did not take part."""
    full = torch.full((count, count), torch.nan, dtype=torch.float64)
    full[members.unsqueeze(1), members] = matrix
    return full
