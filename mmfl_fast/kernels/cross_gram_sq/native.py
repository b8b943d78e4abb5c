"""``cross_gram_sq`` on the CPU, by the C++ kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmfl_fast.kernels.extension import _C
from mmfl_fast.kernels.rows import DTYPE_CODES


def cross_gram_sq(blocks: Sequence[Tensor], mean_columns: bool, normalise_rows: bool, _tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.cross_gram_sq.cross_gram_sq`; here with a batch axis in front."""
    batch, _, rows, _ = blocks[0].shape
    count = sum([block.shape[1] for block in blocks])
    out = torch.empty(batch, count, count, dtype=torch.float64, device="cpu")
    table = []
    for block in blocks:
        batch_stride, view_stride, row_stride, column_stride = block.stride()
        table.append(
            (
                block.data_ptr(),
                batch_stride,
                block.shape[1],
                view_stride,
                row_stride,
                column_stride,
                block.shape[3],
            )
        )
    _C.cross_gram_sq(
        np.array(table, dtype=np.int64),
        batch,
        rows,
        DTYPE_CODES[blocks[0].dtype],
        mean_columns,
        normalise_rows,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
