"""Plain-torch expression of ``gram``; the contract is in ``__init__.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.autocast import without_autocast


@without_autocast
def gram(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    origin: Sequence[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    _tf32: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmfl_fast.kernels.gram.gram`."""
    matrix = rows.matrix(blocks, segments, stacked)
    if origin:
        matrix = matrix - rows.matrix(origin, segments, stacked=False).to(matrix.dtype)
    finite = torch.isfinite(matrix).all(dim=1)
    # Masked before the arithmetic, so that gradients of the finite rows stay finite.
    matrix = torch.where(finite[:, None], matrix, 0.0)
    if mean_origin:
        # Differences from a row, so that the mean of equal rows is that row to the last bit.
        pivot = matrix.index_select(0, finite.int().argmax().reshape(1)).detach()
        differences = torch.where(finite[:, None], matrix - pivot, 0.0)
        centroid = pivot + differences.sum(dim=0) / finite.sum().clamp(min=1)
        matrix = torch.where(finite[:, None], matrix - centroid, 0.0)
    row_mean = matrix.new_zeros(matrix.shape[0], dtype=torch.float64)
    if centre_rows and matrix.shape[1] > 0:
        means = matrix.mean(dim=1, keepdim=True)
        matrix = matrix - means
        row_mean = torch.where(finite, means[:, 0].double(), torch.nan)
    products = (matrix @ matrix.mT).double()
    products = (products + products.mT) / 2
    return torch.where(finite[:, None] & finite, products, torch.nan), row_mean
