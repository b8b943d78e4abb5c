"""R weighted sums of K long rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmfl_fast.kernels.backend import chosen
from mmfl_fast.kernels.mix import op, reference


def mix(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor | None,
    centre_columns: bool,
) -> list[Tensor]:
    """``y_r = sum_k matrix[r, k] (x_k - c - row_offset[k])``.

    A row whose weight is exactly 0 is not read for that output, so a NaN in a row that was not selected
    stays there. A row takes part when any of its weights is not 0.

    Products are added in float32 over groups of 64 rows (float64 for float64 rows), the groups in float64,
    and rounded once to the dtype of the segment.

    Args:
        blocks: the rows, see :mod:`mmfl_fast.kernels.rows`.
        segments: blocks per line of the grid.
        stacked: whether the first axis of a block runs over rows.
        matrix: [R, K] float64.
        row_offset: [K] float64, a number subtracted from every element of a row; or None.
        centre_columns: c is the mean of the rows that take part; else 0.

    Returns:
        One tensor [R, ...] per segment.
    """
    implementation = reference.mix if chosen("mix", blocks[0].device) == "reference" else op.mix
    result: list[Tensor] = implementation(list(blocks), segments, stacked, matrix, row_offset, centre_columns)
    return result
