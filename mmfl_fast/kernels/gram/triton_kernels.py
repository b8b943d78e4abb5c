"""Device code of ``gram``; csrc/gram/README.md derives the shifts."""

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
def _tile(
    pointers, strides, inside, pivots, means, column, width,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, ORIGIN: tl.constexpr, CENTRE: tl.constexpr,
    WHOLE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS, COLUMNS] less the origin and less numbers ``means``; 0 outside."""
    columns = column + tl.arange(0, COLUMNS)
    mask = inside[:, None] & (columns < width)[None, :]
    x = elements(pointers[:, None], strides[:, None], columns[None, :], mask, WHOLE)
    if ORIGIN == "none" and not CENTRE:
        return x.to(FACTOR)
    else:
        x = x.to(COMPUTE)
        if ORIGIN == "mean":
            x -= common_vector(pivots, columns, columns < width, COMPUTE, WHOLE)[None, :]
        elif ORIGIN == "row":
            x -= elements(pivots[0], pivots[1], columns, columns < width, WHOLE).to(COMPUTE)[None, :]
        if CENTRE:
            x -= means[:, None]
        return tl.where(mask, x, 0).to(FACTOR)


@triton.jit
def gram_kernel(
    table, partial, sums, means, counts, rows, segments, tiles, splits, first_split, side, pairs,
    ELEMENT: tl.constexpr, ORIGIN_ELEMENT: tl.constexpr, COMPUTE: tl.constexpr, FACTOR: tl.constexpr,
    PRECISION: tl.constexpr, ORIGIN: tl.constexpr, CENTRE: tl.constexpr, PAIRED: tl.constexpr,
    ONE_BLOCK: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    """Products of two groups of rows over one split of the tiles, added in float64 after RUN columns.

    Args:
        table: of the rows and the origin, see RowTable.
        partial: [splits, side, side] float64, on and above the diagonal of groups.
        sums: [splits, side] float64, of the rows that were multiplied; with CENTRE.
        means: [splits, side] float64, the numbers that CENTRE subtracted from the rows before.
        counts: [splits] float64, columns; with CENTRE.
        rows: K.
        segments: in the table.
        tiles: in all segments.
        splits: of the tiles.
        first_split: where they go.
        side: K, to whole groups.
        pairs: of groups.
        ELEMENT: type of the rows.
        ORIGIN_ELEMENT: type of the origin.
        COMPUTE: type of shifts and sums.
        FACTOR: type of the factors.
        PRECISION: of products of float32.
        ORIGIN: "none", "row" or "mean", which subtracts a common vector.
        CENTRE: whether the means of rows are wanted.
        PAIRED: whether there is more than one group.
        ONE_BLOCK: see RowTable.
        WHOLE: see RowTable.
        ROWS: in a group.
        COLUMNS: in a tile.
        RUN: columns, a multiple of COLUMNS.
    """
    pair = tl.program_id(0) % pairs
    split = (tl.program_id(0) // pairs).to(tl.int64)
    # Pairs lie column by column above the diagonal; neighbours read the same columns.
    right_group = pair * 0
    if PAIRED:
        while (right_group + 1) * (right_group + 2) // 2 <= pair:
            right_group += 1
    left_group = pair - right_group * (right_group + 1) // 2
    left_rows = left_group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    right_rows = right_group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    left_inside = left_rows < rows
    right_inside = right_rows < rows

    tile = split * tiles // splits
    last = (split + 1) * tiles // splits
    segment = segment_of(table, segments, tile)
    total = tl.zeros((ROWS, ROWS), tl.float64)
    total_sum = tl.zeros((ROWS,), tl.float64)
    left_means = tl.zeros((ROWS,), COMPUTE)
    right_means = tl.zeros((ROWS,), COMPUTE)
    count = tile * 0
    while tile < last:
        column, stop, width = segment_columns(table, segments, segment, tile, last, ELEMENT, WHOLE, COLUMNS)
        left, left_stride = rows_at(
            table, segments, rows, segment, tl.minimum(left_rows, rows - 1), ELEMENT, ONE_BLOCK, WHOLE
        )
        right, right_stride = left, left_stride
        if PAIRED:
            right, right_stride = rows_at(
                table, segments, rows, segment, tl.minimum(right_rows, rows - 1), ELEMENT, ONE_BLOCK, WHOLE
            )
        if ORIGIN == "mean":
            pivots = pivots_at(table, segments, rows, segment, ELEMENT, ONE_BLOCK, WHOLE)
        else:
            pivots = further_at(table, segments, rows, segment, ORIGIN_ELEMENT, ONE_BLOCK, WHOLE)
        if CENTRE:
            if count == 0:
                seen = tl.minimum(stop - column, COLUMNS).to(COMPUTE)
                x = _tile(
                    left, left_stride, left_inside, pivots, left_means, column, width,
                    COMPUTE, COMPUTE, ORIGIN, CENTRE, WHOLE, COLUMNS,
                )  # fmt: skip
                left_means = tl.sum(x, axis=1) / seen
                if PAIRED:
                    x = _tile(
                        right, right_stride, right_inside, pivots, right_means, column, width,
                        COMPUTE, COMPUTE, ORIGIN, CENTRE, WHOLE, COLUMNS,
                    )  # fmt: skip
                    right_means = tl.sum(x, axis=1) / seen
        tile += (stop - column + COLUMNS - 1) // COLUMNS
        count += stop - column
        segment += 1
        while column < stop:
            run_stop = tl.minimum(column + RUN, stop)
            products = tl.zeros((ROWS, ROWS), COMPUTE)
            row_sum = tl.zeros((ROWS,), COMPUTE)
            for at in range(column, run_stop, COLUMNS):
                x = _tile(
                    left, left_stride, left_inside, pivots, left_means, at, width,
                    COMPUTE, FACTOR, ORIGIN, CENTRE, WHOLE, COLUMNS,
                )  # fmt: skip
                y = x
                if PAIRED:
                    y = _tile(
                        right, right_stride, right_inside, pivots, right_means, at, width,
                        COMPUTE, FACTOR, ORIGIN, CENTRE, WHOLE, COLUMNS,
                    )  # fmt: skip
                products += multiply(x, tl.trans(y), COMPUTE, PRECISION)
                if CENTRE:
                    row_sum += tl.sum(x, axis=1)
            total += products.to(tl.float64)
            total_sum += row_sum.to(tl.float64)
            column = run_stop

    split += first_split
    tl.store(partial + (split * side + left_rows[:, None]) * side + right_rows[None, :], total)
    if CENTRE and left_group == right_group:
        tl.store(sums + split * side + left_rows, total_sum)
        tl.store(means + split * side + left_rows, left_means.to(tl.float64))
        if pair == 0:
            tl.store(counts + split, count.to(tl.float64))


@triton.jit
def join_kernel(
    partial, sums, means, counts, products, row_mean, rows, splits, side,
    CENTRE: tl.constexpr, ENTRIES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of ENTRIES entries, always in the same order.

    With CENTRE about the means of the rows: with m what a split subtracted from a row and s its sum
    afterwards, n columns have the mean u = m + s / n, and their products about the mean of all columns v are
    those about m, less s s' / n, and (u - v) (u' - v') n.
    """
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    one, other = entry // rows, entry % rows
    inside = one < rows
    wanted = inside[None, :]
    left, right = tl.minimum(one, other)[None, :], tl.maximum(one, other)[None, :]
    left_mean = tl.zeros((ENTRIES,), tl.float64)
    right_mean = tl.zeros((ENTRIES,), tl.float64)
    if CENTRE:
        columns = tl.zeros((1,), tl.float64)
        for first in range(0, splits, SPLITS):
            split = first + tl.arange(0, SPLITS).to(tl.int64)[:, None]
            mask = (split < splits) & wanted
            n = tl.load(counts + split, mask=split < splits, other=0)
            columns += tl.sum(n, axis=0)
            left_mean += tl.sum(
                n * tl.load(means + split * side + left, mask=mask, other=0)
                + tl.load(sums + split * side + left, mask=mask, other=0),
                axis=0,
            )
            right_mean += tl.sum(
                n * tl.load(means + split * side + right, mask=mask, other=0)
                + tl.load(sums + split * side + right, mask=mask, other=0),
                axis=0,
            )
        left_mean /= columns
        right_mean /= columns
        tl.store(row_mean + one, left_mean, mask=(one == other) & inside)
    total = tl.zeros((ENTRIES,), tl.float64)
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS).to(tl.int64)[:, None]
        mask = (split < splits) & wanted
        terms = tl.load(partial + (split * side + left) * side + right, mask=mask, other=0)
        if CENTRE:
            n = tl.load(counts + split, mask=split < splits, other=1)
            left_sum = tl.load(sums + split * side + left, mask=mask, other=0)
            right_sum = tl.load(sums + split * side + right, mask=mask, other=0)
            left_off = tl.load(means + split * side + left, mask=mask, other=0) + left_sum / n
            right_off = tl.load(means + split * side + right, mask=mask, other=0) + right_sum / n
            terms += n * (left_off - left_mean[None, :]) * (right_off - right_mean[None, :])
            terms -= left_sum * right_sum / n
            terms = tl.where(mask, terms, 0)
        total += tl.sum(terms, axis=0)
    tl.store(products + entry, total, mask=inside)
