"""Device code of ``cross_gram_sq``: what becomes rows of ``gram``."""

from __future__ import annotations

import triton
import triton.language as tl

from mmfl_fast.kernels.triton_kernels import multiply

# See unit_rows.py.
SHORTEST_SQUARED = tl.constexpr(1e-24)


@triton.jit
def scale_kernel(
    matrices, scales, view_step, row_step, column_step, rows, columns,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """What brings ROWS rows of one matrix to unit length; 0 for a row that counts as zero.

    Args:
        matrices: [k, n, d] with strides.
        scales: [k, n] contiguous.
        view_step: strides of the matrices, as those that follow.
        rows: n.
        columns: d.
        COMPUTE: type of the arithmetic.
        ROWS: in a tile.
        DEPTH: columns in a tile.
    """
    blocks = tl.cdiv(rows, ROWS)
    view = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = matrices + view * view_step + row * row_step
    squares = tl.zeros((ROWS,), COMPUTE)
    for first in range(0, columns, DEPTH):
        d = first + tl.arange(0, DEPTH).to(tl.int64)
        mask = (row < rows)[:, None] & (d < columns)[None, :]
        x = tl.load(start[:, None] + d[None, :] * column_step, mask=mask, other=0).to(COMPUTE)
        squares += tl.sum(x * x, axis=1)
    short = squares <= SHORTEST_SQUARED
    scale = tl.where(short, 0, 1 / tl.sqrt(tl.where(short, 1, squares)))
    tl.store(scales + view * rows + row, scale, mask=row < rows)


@triton.jit
def mean_kernel(
    matrices, scales, means, view_step, row_step, column_step, rows, columns,
    COMPUTE: tl.constexpr, NORMALISE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Means of DEPTH columns of one matrix.

    Args:
        matrices: [k, n, d] with strides.
        scales: [k, n] contiguous; with NORMALISE.
        means: [k, d] contiguous.
        view_step: strides of the matrices, as those that follow.
        rows: n.
        columns: d.
        COMPUTE: type of the arithmetic.
        NORMALISE: whether rows are scaled.
        ROWS: in a tile.
        DEPTH: columns in a tile.
    """
    blocks = tl.cdiv(columns, DEPTH)
    view = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks).to(tl.int64) * DEPTH + tl.arange(0, DEPTH)
    start = matrices + view * view_step + d * column_step
    total = tl.zeros((DEPTH,), tl.float64)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        mask = (row < rows)[:, None] & (d < columns)[None, :]
        x = tl.load(start[None, :] + row[:, None] * row_step, mask=mask, other=0).to(COMPUTE)
        if NORMALISE:
            x = x * tl.load(scales + view * rows + row, mask=row < rows, other=0)[:, None]
        total += tl.sum(x, axis=0).to(tl.float64)
    tl.store(means + view * columns + d, (total / rows).to(COMPUTE), mask=d < columns)


@triton.jit
def _rows(
    start, row, row_step, d, column_step, scales, means, rows, columns,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, CENTRE: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Rows of one matrix [ROWS, DEPTH], scaled and less the means of columns; 0 outside."""
    mask = (row < rows)[:, None] & (d < columns)[None, :]
    x = tl.load(start + row[:, None] * row_step + d[None, :] * column_step, mask=mask, other=0)
    if NORMALISE:
        x = x.to(COMPUTE) * tl.load(scales + row, mask=row < rows, other=0)[:, None]
    if CENTRE:
        x = x.to(COMPUTE) - tl.load(means + d, mask=d < columns, other=0)[None, :]
        x = tl.where(mask, x, 0)
    return x.to(FACTOR)


@triton.jit
def products_kernel(
    matrices, scales, means, products, view_step, row_step, column_step, rows, columns, first_column, width,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr, CENTRE: tl.constexpr,
    NORMALISE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile [ROWS, ROWS] of a strip of ``Y Y^T`` for one matrix.

    Args:
        matrices: [k, n, d] with strides.
        scales: [k, n] contiguous; with NORMALISE.
        means: [k, d] contiguous; with CENTRE.
        products: [k, n, width] contiguous.
        view_step: strides of the matrices, as those that follow.
        rows: n.
        columns: d.
        first_column: where the strip starts.
        width: of the strip.
        COMPUTE: type of the arithmetic.
        FACTOR: type of the factors.
        PRECISION: of products of float32.
        CENTRE: whether columns lose their means.
        NORMALISE: whether rows are scaled.
        ROWS: of a tile.
        DEPTH: columns of the factors in a tile.
    """
    across = tl.cdiv(width, ROWS)
    down = tl.cdiv(rows, ROWS)
    view = (tl.program_id(0) // across // down).to(tl.int64)
    left = (tl.program_id(0) // across % down).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = (tl.program_id(0) % across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    right = first_column + place
    start = matrices + view * view_step
    scales += view * rows
    means += view * columns
    total = tl.zeros((ROWS, ROWS), COMPUTE)
    for first in range(0, columns, DEPTH):
        d = first + tl.arange(0, DEPTH).to(tl.int64)
        x = _rows(
            start, left, row_step, d, column_step, scales, means, rows, columns,
            COMPUTE, FACTOR, CENTRE, NORMALISE,
        )  # fmt: skip
        y = _rows(
            start, right, row_step, d, column_step, scales, means, rows, columns,
            COMPUTE, FACTOR, CENTRE, NORMALISE,
        )  # fmt: skip
        total += multiply(x, tl.trans(y), COMPUTE, PRECISION)
    tl.store(
        products + (view * rows + left[:, None]) * width + place[None, :],
        total,
        mask=(left < rows)[:, None] & (place < width)[None, :],
    )
