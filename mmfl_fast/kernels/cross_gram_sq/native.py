"""``cross_gram_sq`` by the C++ kernel on the CPU and by the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmfl_fast.kernels.cuda_call import cuda_call
from mmfl_fast.kernels.extension import _C
from mmfl_fast.kernels.rows import DTYPE_CODES


def _table(blocks: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    """Of each block its address, batch stride, views, and strides of views, rows and columns, columns."""
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
    return np.array(table, dtype=np.int64)


def cross_gram_sq(blocks: Sequence[Tensor], mean_columns: bool, normalise_rows: bool, _tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.cross_gram_sq.cross_gram_sq`; here with a batch axis in front."""
    batch, _, rows, _ = blocks[0].shape
    count = sum([block.shape[1] for block in blocks])
    out = torch.empty(batch, count, count, dtype=torch.float64, device="cpu")
    _C.cross_gram_sq(
        _table(blocks),
        batch,
        rows,
        DTYPE_CODES[blocks[0].dtype],
        mean_columns,
        normalise_rows,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def cross_gram_sq_cuda(
    blocks: Sequence[Tensor], mean_columns: bool, normalise_rows: bool, tf32: bool
) -> Tensor:
    """Do the same on a GPU, asynchronously, on the current stream of the blocks' device."""
    first = blocks[0]
    batch, _, rows, _ = first.shape
    count = sum([block.shape[1] for block in blocks])
    out = torch.empty(batch, count, count, dtype=torch.float64, device=first.device)
    arguments = (
        _table(blocks),
        batch,
        rows,
        DTYPE_CODES[first.dtype],
        mean_columns,
        normalise_rows,
        tf32,
    )
    call, _kept_workspace = cuda_call(first.device, _C.cross_gram_sq_cuda_workspace(*arguments))
    _C.cross_gram_sq_cuda(*arguments, out.data_ptr(), *call)
    return out
