"""``mix`` on the CPU, by the C++ kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.extension import _C


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
    outputs = [
        torch.empty((matrix.shape[0], *rows.row_shape(block, stacked)), dtype=block.dtype)
        for block in blocks[:segments]
    ]
    block_table, _kept_blocks = rows.block_table(blocks, stacked)
    output_table = np.array(
        [
            (output.data_ptr(), *output.shape[:1], output.stride(0), 1, rows.DTYPE_CODES[output.dtype])
            for output in outputs
        ],
        dtype=np.int64,
    )
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
