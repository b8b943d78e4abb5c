"""Device code of ``mix``."""

from __future__ import annotations

import triton
import triton.language as tl

from mmfl_fast.kernels.triton_kernels import (
    common_vector,
    elements,
    further_at,
    multiply,
    pivots_at,
    rows_at,
    segment_columns,
    segment_of,
)


@triton.jit
def mix_kernel(
    table, matrix, totals, row_offset, mean_offset, rows, lines, segments, parts,
    ELEMENT: tl.constexpr, COMPUTE: tl.constexpr, CENTRE: tl.constexpr, OFFSET: tl.constexpr,
    ONE_BLOCK: tl.constexpr, WHOLE: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """OUTPUTS weighted sums on one tile of columns.

    With CENTRE the first of them is the mean of the rows that take part, less what all rows lose when they
    are read: a common vector, and their offsets. The others lose ``totals`` times that mean.

    Args:
        table: of the rows and the outputs, see RowTable.
        matrix: [lines, K] float64, with CENTRE below a line with the shares of the rows in their mean.
        totals: [lines] float64, sums of the lines; with CENTRE.
        row_offset: [K] float64; with OFFSET.
        mean_offset: [1] float64, the mean offset of the rows that take part; with both.
        rows: K.
        lines: of the matrix.
        segments: in the table.
        parts: programs that share a tile of columns.
        ELEMENT: type of the rows and the outputs.
        COMPUTE: type of the arithmetic.
        CENTRE: whether rows lose their mean.
        OFFSET: whether rows lose a number each.
        ONE_BLOCK: see RowTable.
        WHOLE: see RowTable.
        OUTPUTS: of a program. Up to 4 are summed row by row, more by matrix products.
        DEPTH: rows that are added in COMPUTE; sums of so many are added in float64.
        COLUMNS: in a tile.
    """
    SHARED: tl.constexpr = 1 if CENTRE else 0
    tile = (tl.program_id(0) // parts).to(tl.int64)
    part = (tl.program_id(0) % parts).to(tl.int64)
    local = tl.arange(0, OUTPUTS)
    # The line of shares stands first in every part.
    line = tl.where(local < SHARED, 0, part * (OUTPUTS - SHARED) + local)
    wanted = line < lines
    segment = segment_of(table, segments, tile)
    column, _, width = segment_columns(table, segments, segment, tile, tile + 1, ELEMENT, WHOLE, COLUMNS)
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < width
    common = tl.zeros((COLUMNS,), COMPUTE)
    if CENTRE:
        pivots = pivots_at(table, segments, rows, segment, ELEMENT, ONE_BLOCK, WHOLE)
        common = common_vector(pivots, columns, inside, COMPUTE, WHOLE)

    total = tl.zeros((OUTPUTS, COLUMNS), tl.float64)
    if OUTPUTS <= 4:
        for first in range(0, rows, DEPTH):
            sums = tl.zeros((OUTPUTS, COLUMNS), COMPUTE)
            for k in tl.range(first, tl.minimum(first + DEPTH, rows), loop_unroll_factor=4):
                weights = tl.load(matrix + line * rows + k, mask=wanted, other=0).to(COMPUTE)[:, None]
                pointer, stride = rows_at(
                    table, segments, rows, segment, tile * 0 + k, ELEMENT, ONE_BLOCK, WHOLE
                )
                x = elements(pointer, stride, columns, inside, WHOLE).to(COMPUTE) - common
                if OFFSET:
                    x -= tl.load(row_offset + k).to(COMPUTE)
                # A weight of 0 leaves a non-finite value unread.
                sums += tl.where(weights == 0, 0, weights * x[None, :])
            total += sums.to(tl.float64)
    else:
        spoilt_rows = tl.zeros((DEPTH, COLUMNS), tl.int32)
        for first in range(0, rows, DEPTH):
            weights, x = _panel(
                table, matrix, row_offset, rows, segments, segment, line, wanted, columns, inside, common,
                first, ELEMENT, COMPUTE, OFFSET, ONE_BLOCK, WHOLE, DEPTH,
            )  # fmt: skip
            finite = x - x == 0
            spoilt_rows |= tl.where(finite, 0, 1)
            products = multiply(weights.to(COMPUTE), tl.where(finite, x, 0), COMPUTE, "tf32x3")
            total += products.to(tl.float64)
        if tl.max(tl.max(spoilt_rows, axis=1), axis=0) > 0:
            spoilt = tl.zeros((OUTPUTS, COLUMNS), tl.float32)
            for first in range(0, rows, DEPTH):
                weights, x = _panel(
                    table, matrix, row_offset, rows, segments, segment, line, wanted, columns, inside, common,
                    first, ELEMENT, COMPUTE, OFFSET, ONE_BLOCK, WHOLE, DEPTH,
                )  # fmt: skip
                reads = tl.where(weights != 0, 1.0, 0.0).to(tl.float32)
                spoilt += multiply(reads, tl.where(x - x == 0, 0.0, 1.0).to(tl.float32), tl.float32, "tf32")
            total = tl.where(spoilt > 0, float("nan"), total)

    if CENTRE:
        mean = tl.sum(tl.where((local == 0)[:, None], total, 0), axis=0)
        if OFFSET:
            mean += tl.load(mean_offset)
        total -= tl.load(totals + line, mask=wanted, other=0)[:, None] * mean[None, :]
    output, _ = further_at(table, segments, rows, segment, ELEMENT, ONE_BLOCK, WHOLE)
    stored = (wanted & (local >= SHARED))[:, None] & inside[None, :]
    places = output + (line - SHARED)[:, None] * width + columns[None, :]
    tl.store(places, total.to(COMPUTE).to(ELEMENT), mask=stored)


@triton.jit
def _panel(
    table, matrix, row_offset, rows, segments, segment, line, wanted, columns, inside, common, first,
    ELEMENT: tl.constexpr, COMPUTE: tl.constexpr, OFFSET: tl.constexpr, ONE_BLOCK: tl.constexpr,
    WHOLE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Weights [OUTPUTS, DEPTH] and the rows they belong to [DEPTH, COLUMNS]; 0 outside."""
    k = first + tl.arange(0, DEPTH).to(tl.int64)
    there = k < rows
    weights = tl.load(
        matrix + line[:, None] * rows + k[None, :], mask=wanted[:, None] & there[None, :], other=0
    )
    pointers, strides = rows_at(
        table, segments, rows, segment, tl.minimum(k, rows - 1), ELEMENT, ONE_BLOCK, WHOLE
    )
    mask = there[:, None] & inside[None, :]
    x = elements(pointers[:, None], strides[:, None], columns[None, :], mask, WHOLE).to(COMPUTE)
    x -= common[None, :]
    if OFFSET:
        x -= tl.load(row_offset + k, mask=there, other=0).to(COMPUTE)[:, None]
    return weights, tl.where(mask, x, 0)
