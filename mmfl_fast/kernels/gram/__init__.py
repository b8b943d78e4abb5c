"""``G = R R^T`` for K long rows, with the origin subtracted while they are read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmfl_fast.kernels.backend import uses_reference
from mmfl_fast.kernels.gram import op, reference


def gram(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    origin: Sequence[Tensor],
    mean_origin: bool,
    centre_rows: bool,
) -> tuple[Tensor, Tensor]:
    """Inner products of all pairs of rows.

    A row with a non-finite element is left out of the centroid, and its own row and column of the result
    are NaN. Rows are multiplied in float32 (float64 if any segment is float64) within tiles of at most 1024
    columns and added in float64; products that overflow float32 give inf or NaN.

    Args:
        blocks: the rows, see :mod:`mmfl_fast.kernels.rows`.
        segments: blocks per line of the grid.
        stacked: whether the first axis of a block runs over rows.
        origin: one tensor per segment with the shape of one row, subtracted from every row; or empty.
        mean_origin: subtract the centroid of the rows instead.
        centre_rows: then subtract from each row the mean of its own elements.

    Returns:
        ``G`` [K, K] and the means that ``centre_rows`` subtracted [K] (zeros without it), both float64.
        Both are differentiable, twice.
    """
    implementation = reference.gram if uses_reference(blocks[0].device, cuda_kernel=True) else op.gram
    result: tuple[Tensor, Tensor] = implementation(
        list(blocks), segments, stacked, list(origin), mean_origin, centre_rows
    )
    return result
