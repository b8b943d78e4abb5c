"""``mix`` by the C++ kernel on the CPU and by the CUDA kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.cuda_place import cuda_place
from mmfl_fast.kernels.extension import _C


def _outputs(blocks: list[Tensor], segments: int, stacked: bool, count: int) -> list[Tensor]:
    """Memory for the results, one tensor per segment."""
    return [
        torch.empty((count, *rows.row_shape(block, stacked)), dtype=block.dtype, device=block.device)
        for block in blocks[:segments]
    ]


def mix(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor | None,
    centre_columns: bool,
) -> list[Tensor]:
    """See :func:`mmfl_fast.kernels.mix.mix`."""
    matrix = matrix.contiguous()
    row_offset = None if row_offset is None else row_offset.contiguous()
    outputs = _outputs(blocks, segments, stacked, matrix.shape[0])
    threads = torch.get_num_threads()
    _C.mix(blocks, segments, stacked, matrix, row_offset, centre_columns, outputs, threads)
    return outputs


def mix_cuda(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor | None,
    centre_columns: bool,
) -> list[Tensor]:
    """See :func:`mmfl_fast.kernels.mix.mix`. Asynchronous, on the current stream of the blocks' device."""
    matrix = matrix.contiguous()
    row_offset = None if row_offset is None else row_offset.contiguous()
    outputs = _outputs(blocks, segments, stacked, matrix.shape[0])
    place = cuda_place(blocks[0].device)
    _C.mix_cuda(blocks, segments, stacked, matrix, row_offset, centre_columns, outputs, *place)
    return outputs
