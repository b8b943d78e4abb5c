"""``gram`` by the C++ kernel on the CPU and by the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.cuda_call import cuda_call
from mmfl_fast.kernels.extension import _C


def gram(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    origin: Sequence[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    _tf32: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmfl_fast.kernels.gram.gram`."""
    count = rows.row_count(blocks, segments, stacked)
    products = torch.empty(count, count, dtype=torch.float64, device="cpu")
    row_mean = torch.empty(count, dtype=torch.float64, device="cpu")
    block_table, _kept_blocks = rows.block_table(blocks, stacked)
    origin_table, _kept_origin = rows.block_table(origin, stacked=False)
    _C.gram(
        block_table,
        rows.widths(blocks, segments, stacked),
        origin_table,
        mean_origin,
        centre_rows,
        products.data_ptr(),
        row_mean.data_ptr(),
        torch.get_num_threads(),
    )
    return products, row_mean


def gram_cuda(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    origin: Sequence[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmfl_fast.kernels.gram.gram`. Asynchronous, on the current stream of the blocks' device."""
    device = blocks[0].device
    count = rows.row_count(blocks, segments, stacked)
    products = torch.empty(count, count, dtype=torch.float64, device=device)
    row_mean = torch.empty(count, dtype=torch.float64, device=device)
    block_table, _kept_blocks = rows.block_table(blocks, stacked)
    origin_table, _kept_origin = rows.block_table(origin, stacked=False)
    widths = rows.widths(blocks, segments, stacked)
    arguments = (block_table, widths, origin_table, mean_origin, centre_rows, tf32)
    call, _kept_workspace = cuda_call(device, _C.gram_cuda_workspace(*arguments))
    _C.gram_cuda(*arguments, products.data_ptr(), row_mean.data_ptr(), *call)
    return products, row_mean
