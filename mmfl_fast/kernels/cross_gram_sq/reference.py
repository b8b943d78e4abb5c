"""Plain-torch expression of ``cross_gram_sq``; the contract is in ``__init__.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfl_fast.kernels.autocast import without_autocast
from mmfl_fast.kernels.rows import compute_dtype
from mmfl_fast.kernels.unit_rows import unit_rows


@without_autocast
def cross_gram_sq(blocks: Sequence[Tensor], mean_columns: bool, normalise_rows: bool, _tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.cross_gram_sq.cross_gram_sq`; here with a batch axis in front."""
    grams = []
    for block in blocks:
        x = block.to(compute_dtype([block.dtype]))
        if normalise_rows:
            x, _ = unit_rows(x)
        if mean_columns:
            x = x - x.mean(dim=-2, keepdim=True)
        grams.append((x @ x.mT).flatten(-2))
    rows = torch.cat(grams, dim=1)
    good = torch.isfinite(rows).all(dim=-1)
    # Masked before the product, so that gradients of the finite views stay finite.
    rows = torch.where(good[..., None], rows, 0.0).double()
    return torch.where(good[..., None] & good[..., None, :], rows @ rows.mT, torch.nan)
