"""``gram`` by the C++ kernel on the CPU and by the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.cuda_place import cuda_place
from mmfl_fast.kernels.extension import _C


def gram(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    origin: list[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    _tf32: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmfl_fast.kernels.gram.gram`."""
    count = rows.row_count(blocks, segments, stacked)
    products = torch.empty(count, count, dtype=torch.float64, device="cpu")
    row_mean = torch.empty(count, dtype=torch.float64, device="cpu")
    threads = torch.get_num_threads()
    _C.gram(blocks, segments, stacked, origin, mean_origin, centre_rows, products, row_mean, threads)
    return products, row_mean


def gram_cuda(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    origin: list[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmfl_fast.kernels.gram.gram`. Asynchronous, on the current stream of the blocks' device."""
    device = blocks[0].device
    count = rows.row_count(blocks, segments, stacked)
    products = torch.empty(count, count, dtype=torch.float64, device=device)
    row_mean = torch.empty(count, dtype=torch.float64, device=device)
    place = cuda_place(device)
    _C.gram_cuda(
        blocks, segments, stacked, origin, mean_origin, centre_rows, tf32, products, row_mean, *place
    )
    return products, row_mean
