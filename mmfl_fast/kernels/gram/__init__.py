"""``G = R R^T`` for K long rows, with the origin subtracted while they are read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmfl_fast.kernels.backend import chosen
from mmfl_fast.kernels.gram import op, reference


def gram(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    origin: Sequence[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool = False,
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
        tf32: let a GPU round float32 factors to TensorFloat-32, 10 bits after the point. A CPU never
            does, and the plain expression goes by torch's own setting.

    Returns:
        ``G`` [K, K] and the means that ``centre_rows`` subtracted [K] (zeros without it), both float64.
        Both are differentiable, twice.
    """
    implementation = reference.gram if chosen("gram", blocks[0].device) == "reference" else op.gram
    result: tuple[Tensor, Tensor] = implementation(
        list(blocks), segments, stacked, list(origin), mean_origin, centre_rows, tf32
    )
    return result
