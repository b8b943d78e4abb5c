"""Canonical rows: how every form of K long rows reaches a kernel without a copy.

``blocks`` is a grid of tensors in row-major order: ``segments`` of them, one after the other, hold the same
rows. With ``stacked`` the first axis of a tensor runs over rows; without it a tensor belongs to one row.
A tensor ``[K, ...]`` is one stacked block, the stacked parameters of a cohort are one line of stacked
blocks, and K state dicts are K lines of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# The codes of csrc/common/dtype.h.
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def row_count(blocks: Sequence[Tensor], segments: int, stacked: bool) -> int:
    """K, the number of rows."""
    if not stacked:
        return len(blocks) // segments
    return sum([block.shape[0] for block in blocks[::segments]])


def row_shape(block: Tensor, stacked: bool) -> torch.Size:
    """The shape of one row's part in a block."""
    return block.shape[1:] if stacked else block.shape


def width(blocks: Sequence[Tensor], segments: int, stacked: bool) -> int:
    """P, the number of elements of one row."""
    return sum(row_shape(block, stacked).numel() for block in blocks[:segments])


def segment_matrix(blocks: Sequence[Tensor], segments: int, stacked: bool, segment: int) -> Tensor:
    """One segment's rows as a matrix ``[K, elements]``."""
    parts = blocks[segment::segments]
    if stacked:
        return torch.cat([part.flatten(1) if part.dim() > 1 else part.unsqueeze(1) for part in parts])
    return torch.stack([part.flatten() for part in parts])


def compute_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The type kernels compute in: float64 if any segment is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def matrix(blocks: Sequence[Tensor], segments: int, stacked: bool) -> Tensor:
    """All rows as one matrix ``[K, P]`` in the compute type; what the references work on."""
    dtype = compute_dtype([block.dtype for block in blocks])
    parts = [segment_matrix(blocks, segments, stacked, s).to(dtype) for s in range(segments)]
    return torch.cat(parts, dim=1)


def split_rows(
    outputs: Sequence[Tensor], blocks: Sequence[Tensor], segments: int, stacked: bool
) -> list[Tensor]:
    """Tensors ``[K, ...]``, one per segment, cut into the shapes of ``blocks``."""
    if not stacked:
        columns = [output.unbind(0) for output in outputs]
        return [columns[at % segments][at // segments] for at in range(len(blocks))]
    sizes = [block.shape[0] for block in blocks[::segments]]
    columns = [output.split(sizes) for output in outputs]
    return [columns[at % segments][at // segments] for at in range(len(blocks))]


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


NO_BLOCKS = np.empty(0, dtype=np.int64)


def block_table(blocks: Sequence[Tensor], stacked: bool) -> tuple[npt.NDArray[np.int64], Sequence[Tensor]]:
    """Addresses of the blocks for ``_C``, as ``RowBlock`` of ``csrc/common/row_block.h``.

    Returns:
        ``[len(blocks) * 5]`` integers and the tensors they point into, to be kept until the kernel returns.
        A block whose rows have no single inner stride is copied to a contiguous one; no other is.
    """
    if not blocks:
        return NO_BLOCKS, blocks
    if not stacked and all(map(Tensor.is_contiguous, blocks)):
        table = np.empty((len(blocks), 5), dtype=np.int64)
        table[:, 0] = list(map(Tensor.data_ptr, blocks))
        table[:, 1:4] = (1, 0, 1)
        table[:, 4] = [DTYPE_CODES[block.dtype] for block in blocks]
        return table, blocks
    kept: list[Tensor] = []
    fields: list[int] = []
    for block in blocks:
        strides = block.stride()
        if block.is_contiguous():
            inner: int | None = 1
        else:
            inner = _inner_stride(row_shape(block, stacked), strides[1 if stacked else 0 :])
        if inner is None:
            block, inner = block.contiguous(), 1
            strides = block.stride()
        kept.append(block)
        rows, row_stride = (block.shape[0], strides[0]) if stacked else (1, 0)
        fields += (block.data_ptr(), rows, row_stride, inner, DTYPE_CODES[block.dtype])
    return np.array(fields, dtype=np.int64), kept


def widths(blocks: Sequence[Tensor], segments: int, stacked: bool) -> npt.NDArray[np.int64]:
    """Elements of one row in each segment, ``[segments]``."""
    shapes = [row_shape(block, stacked) for block in blocks[:segments]]
    return np.array([shape.numel() for shape in shapes], dtype=np.int64)
