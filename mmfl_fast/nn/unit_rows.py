"""Directions of the rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Scale the rows of ``[N, d]`` to unit length; a row of zeros has no direction and stays as it is.

    It gets no gradient either, where ``F.normalize`` divides one by the smallest length it knows.
    """
    squares = rows.square().sum(dim=1, keepdim=True)
    return rows / torch.where(squares > 0, squares, torch.inf).sqrt()
