"""Rows of unit length, as the kernels define them."""

from __future__ import annotations

import torch
from torch import Tensor

# A row no longer than this counts as zero.
_SHORTEST = 1e-12


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to unit length, and their scales [..., 1]; both 0 for a row that counts as zero."""
    # The square root has no finite slope at 0, so it never sees one.
    squares = x.square().sum(dim=-1, keepdim=True)
    short = squares <= _SHORTEST**2
    scale = torch.where(short, 0.0, torch.where(short, 1.0, squares).rsqrt())
    return x * scale, scale
