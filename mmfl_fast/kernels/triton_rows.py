"""Canonical rows for the Triton kernels: addresses in a table on the device, no copy of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.triton_kernels import MARK, fill_kernel

# Values per launch that writes the table. Each is an argument of 8 bytes; a kernel may have 4096 of them.
_FEW, _MANY = 16, 256


@dataclass(frozen=True)
class RowTable:
    """Segments that one launch reads: of one dtype, all of them aligned or not.

    Attributes:
        device: int64, sections one after the other, with S segments, K rows and L lines (1 if
            ``one_block``, else K): first tile of every segment and the number of tiles [S + 1], widths [S],
            addresses [S, L], bytes from row to row [S], addresses of the further rows [S], their strides
            [S], strides [S, L] (left out if ``whole``).
        kept: tensors that the addresses point into.
        dtype: of the rows.
        further_dtype: of the further rows; that of the rows if there are none.
        chosen: S, the segments by their numbers.
        tiles: of columns, in all segments.
        one_block: the rows of every segment lie in one tensor.
        whole: every row is contiguous, and aligned to 16 bytes at both ends.
    """

    device: Tensor
    kept: Sequence[Tensor]
    dtype: torch.dtype
    further_dtype: torch.dtype
    chosen: list[int]
    tiles: int
    one_block: bool
    whole: bool


def row_tables(
    blocks: Sequence[Tensor], segments: int, stacked: bool, further: Sequence[Tensor], tile: int
) -> list[RowTable]:
    """Describe rows, one table per launch. Segments without elements are left out.

    Blocks of a segment that disagree in dtype are copied to a common one, as are those that have no single
    inner stride.

    Args:
        blocks: the rows, see :mod:`mmfl_fast.kernels.rows`.
        segments: blocks per line of the grid.
        stacked: whether the first axis of a block runs over rows.
        further: one row for every segment, of the same width; or empty.
        tile: columns per tile.
    """
    blocks = list(blocks)
    lines = len(blocks) // segments
    for s in range(segments):
        blocks[s::segments] = _of_one_dtype(blocks[s::segments])
    grid, kept = _block_table(blocks, stacked)
    extra, kept_further = _block_table(further, stacked=False)
    grid = grid.reshape(lines, segments, 4)
    shapes = [rows.row_shape(block, stacked) for block in blocks[:segments]]
    widths = np.array([shape.numel() for shape in shapes], dtype=np.int64)
    launches: dict[tuple[torch.dtype, torch.dtype, bool], list[int]] = {}
    for s in range(segments):
        dtype = blocks[s].dtype
        further_dtype = further[s].dtype if further else dtype
        whole = _is_whole(grid[:, s], int(widths[s]), dtype.itemsize) and (
            not further or _is_whole(extra[s : s + 1], int(widths[s]), further_dtype.itemsize)
        )
        if widths[s] > 0:
            launches.setdefault((dtype, further_dtype, whole), []).append(s)
    tables = []
    for (dtype, further_dtype, whole), chosen in launches.items():
        some = grid[:, chosen]
        if lines > 1:
            some = np.concatenate([_single_rows(line, dtype.itemsize) for line in some])
        starts = np.concatenate([[0], np.cumsum(-(-widths[chosen] // tile))])
        nothing = np.zeros(len(chosen), dtype=np.int64)
        sections = [
            starts,
            widths[chosen],
            some[:, :, 0].T.ravel(),
            some[0, :, 2] * dtype.itemsize,
            extra[chosen, 0] if further else nothing,
            extra[chosen, 3] if further else nothing,
        ]
        if not whole:
            sections.append(some[:, :, 3].T.ravel())
        table = _write(np.concatenate(sections).tolist(), blocks[0].device)
        tables.append(
            RowTable(
                table,
                [*kept, *kept_further],
                dtype,
                further_dtype,
                chosen,
                int(starts[-1]),
                lines == 1,
                whole,
            )
        )
    return tables


def _inner_stride(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The one stride between consecutive elements of a row; None if there is no such stride."""
    stride: int | None = None
    expected = 0
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = expected = step
        elif step != expected:
            return None
        expected *= size
    return 1 if stride is None else stride


def _block_table(blocks: Sequence[Tensor], stacked: bool) -> tuple[npt.NDArray[np.int64], Sequence[Tensor]]:
    """Of each block its address, rows, and strides from row to row and from element to element.

    Returns:
        ``[len(blocks), 4]`` and the tensors that the addresses point into. A block whose rows have no single
        inner stride is copied to a contiguous one; no other is.
    """
    kept: list[Tensor] = []
    table: list[tuple[int, int, int, int]] = []
    for block in blocks:
        inner = _inner_stride(rows.row_shape(block, stacked), block.stride()[1 if stacked else 0 :])
        if inner is None:
            block, inner = block.contiguous(), 1
        kept.append(block)
        count, step = (block.shape[0], block.stride(0)) if stacked else (1, 0)
        table.append((block.data_ptr(), count, step, inner))
    return np.array(table, dtype=np.int64).reshape(-1, 4), kept


def _of_one_dtype(column: list[Tensor]) -> list[Tensor]:
    dtype = column[0].dtype
    for block in column:
        dtype = torch.promote_types(dtype, block.dtype)
    return [block.to(dtype) for block in column]


def _is_whole(blocks: npt.NDArray[np.int64], width: int, size: int) -> bool:
    addresses, counts, steps, strides = (blocks[:, i] for i in range(4))
    aligned = (addresses % 16 == 0) & ((counts <= 1) | (steps * size % 16 == 0))
    return bool((aligned & (strides == 1)).all()) and width * size % 16 == 0


def _single_rows(line: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Blocks ``[S, 4]`` of several rows as blocks ``[rows, S, 4]`` of one."""
    single = np.repeat(line[None], line[0, 1], axis=0)
    single[:, :, 0] += np.arange(len(single))[:, None] * line[:, 2] * size
    return single


def _write(values: Sequence[int], device: torch.device) -> Tensor:
    """Integers in memory of the device.

    They travel as arguments of kernels: a copy from the host would wait for the device, and a CUDA graph
    would read the host's memory again at every replay.
    """
    piece = _FEW if len(values) <= _FEW else _MANY
    padded = [*values, *[0] * (-len(values) % piece)]
    table = torch.empty(len(padded), dtype=torch.int64, device=device)
    for first in range(0, len(padded), piece):
        marked = tuple(16 * value + MARK.value for value in padded[first : first + piece])
        fill_kernel[(1,)](table, first, marked, piece, num_warps=1, enable_fp_fusion=True)
    return table
