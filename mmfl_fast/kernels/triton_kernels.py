"""What the Triton kernels of all primitives share: products, and rows behind a table of addresses."""

from __future__ import annotations

import triton
import triton.language as tl

# Triton types an integer argument by its size and compiles anew for multiples of 16. Written as
# 16 value + MARK all values look the same to it.
MARK = tl.constexpr((1 << 62) + 1)


@triton.jit
def multiply(left, right, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):
    """``left @ right`` that starts from zero: the caller's sum of such products is an ordinary addition.

    Matrix units round sums towards zero; a bound on imprecise additions keeps Triton from moving the
    caller's addition into them.
    """
    return tl.dot(left, right, input_precision=PRECISION, max_num_imprecise_acc=1, out_dtype=COMPUTE)


@triton.jit
def fill_kernel(table, first, values, COUNT: tl.constexpr):
    """Write ``values``, marked, to ``table`` from ``first`` on."""
    for i in tl.static_range(COUNT):
        tl.store(table + first + i, (values[i] - MARK) >> 4)


@triton.jit
def segment_of(table, segments, tile):
    """The segment that holds a tile."""
    low = tile * 0
    high = low + segments
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(table + middle) <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def segment_columns(
    table, segments, segment, first, last,
    ELEMENT: tl.constexpr, WHOLE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of tiles [first, last) those of a segment: the first column, the one behind the last, the width."""
    start = tl.load(table + segment)
    end = tl.minimum(last, tl.load(table + segment + 1))
    width = tl.load(table + segments + 1 + segment)
    if WHOLE:
        width = tl.multiple_of(width, 128 // ELEMENT.primitive_bitwidth)
    column = tl.multiple_of((first - start) * COLUMNS, COLUMNS)
    return column, tl.minimum((end - start) * COLUMNS, width), width


@triton.jit
def _pointers(addresses, ELEMENT: tl.constexpr, WHOLE: tl.constexpr):
    pointers = addresses.to(tl.pointer_type(ELEMENT))
    if WHOLE:
        pointers = tl.multiple_of(pointers, 16)
    return pointers


@triton.jit
def rows_at(
    table, segments, rows, segment, row, ELEMENT: tl.constexpr, ONE_BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    """Where rows start in a segment, and how far apart their elements are (not told if WHOLE)."""
    addresses = table + 2 * segments + 1
    strides = row
    if ONE_BLOCK:
        address = tl.load(addresses + segment) + row * tl.load(addresses + segments + segment)
        if not WHOLE:
            strides = row * 0 + tl.load(addresses + 4 * segments + segment)
    else:
        address = tl.load(addresses + segment * rows + row)
        if not WHOLE:
            strides = tl.load(addresses + (rows + 3) * segments + segment * rows + row)
    return _pointers(address, ELEMENT, WHOLE), strides


@triton.jit
def further_at(
    table, segments, rows, segment, ELEMENT: tl.constexpr, ONE_BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    """Likewise the further row of a segment: an origin, or the first output."""
    lines = rows
    if ONE_BLOCK:
        lines = 1
    entry = table + (3 + lines) * segments + 1 + segment
    return _pointers(tl.load(entry), ELEMENT, WHOLE), tl.load(entry + segments)


@triton.jit
def elements(pointers, strides, columns, mask, WHOLE: tl.constexpr):
    """Columns of rows, 0 where ``mask`` is false."""
    if WHOLE:
        return tl.load(pointers + columns, mask=mask, other=0)
    else:
        return tl.load(pointers + columns * strides, mask=mask, other=0)


@triton.jit
def pivots_at(
    table, segments, rows, segment, ELEMENT: tl.constexpr, ONE_BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    """Pointers and strides of the first, the middle and the last row, for :func:`common_vector`."""
    zero = segment * 0
    a, a_stride = rows_at(table, segments, rows, segment, zero, ELEMENT, ONE_BLOCK, WHOLE)
    b, b_stride = rows_at(table, segments, rows, segment, zero + rows // 2, ELEMENT, ONE_BLOCK, WHOLE)
    c, c_stride = rows_at(table, segments, rows, segment, zero + rows - 1, ELEMENT, ONE_BLOCK, WHOLE)
    return a, a_stride, b, b_stride, c, c_stride


@triton.jit
def common_vector(pivots, columns, mask, COMPUTE: tl.constexpr, WHOLE: tl.constexpr):
    """The median of three rows, element by element; 0 where it is not finite.

    Any vector may be subtracted from rows that are centred afterwards. This one lies among the rows even if
    one of the three is far away, and is one of them if all are equal.
    """
    a = elements(pivots[0], pivots[1], columns, mask, WHOLE).to(COMPUTE)
    b = elements(pivots[2], pivots[3], columns, mask, WHOLE).to(COMPUTE)
    c = elements(pivots[4], pivots[5], columns, mask, WHOLE).to(COMPUTE)
    # Minimum and maximum pass over a NaN.
    median = tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))
    return tl.where(median - median == 0, median, 0)
