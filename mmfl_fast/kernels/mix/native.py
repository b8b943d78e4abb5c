"""``mix`` by the C++ kernel on the CPU and by the CUDA kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.cuda_call import cuda_call
from mmfl_fast.kernels.extension import _C


def _outputs(
    blocks: Sequence[Tensor], segments: int, stacked: bool, count: int
) -> tuple[list[Tensor], npt.NDArray[np.int64]]:
    """Memory for the results, one tensor per segment, and its addresses as ``RowBlock``."""
    outputs = [
        torch.empty((count, *rows.row_shape(block, stacked)), dtype=block.dtype, device=block.device)
        for block in blocks[:segments]
    ]
    table = [
        (output.data_ptr(), count, output.stride(0), 1, rows.DTYPE_CODES[output.dtype]) for output in outputs
    ]
    return outputs, np.array(table, dtype=np.int64)


def mix(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor,
    centre_columns: bool,
) -> list[Tensor]:
    """See :func:`mmfl_fast.kernels.mix.mix`."""
    matrix, row_offset = matrix.contiguous(), row_offset.contiguous()
    outputs, output_table = _outputs(blocks, segments, stacked, matrix.shape[0])
    block_table, _kept_blocks = rows.block_table(blocks, stacked)
    _C.mix(
        block_table,
        rows.widths(blocks, segments, stacked),
        output_table,
        matrix.data_ptr(),
        matrix.shape[0],
        matrix.shape[1],
        row_offset.data_ptr() if row_offset.numel() > 0 else 0,
        centre_columns,
        torch.get_num_threads(),
    )
    return outputs


def mix_cuda(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor,
    centre_columns: bool,
) -> list[Tensor]:
    """See :func:`mmfl_fast.kernels.mix.mix`. Asynchronous, on the current stream of the blocks' device."""
    matrix, row_offset = matrix.contiguous(), row_offset.contiguous()
    outputs, output_table = _outputs(blocks, segments, stacked, matrix.shape[0])
    block_table, _kept_blocks = rows.block_table(blocks, stacked)
    arguments = (
        block_table,
        rows.widths(blocks, segments, stacked),
        output_table,
        matrix.data_ptr(),
        matrix.shape[0],
        matrix.shape[1],
        row_offset.data_ptr() if row_offset.numel() > 0 else 0,
        centre_columns,
    )
    call, _kept_workspace = cuda_call(blocks[0].device, _C.mix_cuda_workspace(*arguments))
    _C.mix_cuda(*arguments, *call)
    return outputs
