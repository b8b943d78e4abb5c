"""Canonical rows: how every form of K long rows reaches a kernel without a copy.

``blocks`` is a grid of tensors in row-major order: ``segments`` of them, one after the other, hold the same
rows. With ``stacked`` the first axis of a tensor runs over rows; without it a tensor belongs to one row.
A tensor ``[K, ...]`` is one stacked block, the stacked parameters of a cohort are one line of stacked
blocks, and K state dicts are K lines of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
