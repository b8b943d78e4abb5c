"""``cross_gram_sq`` by the C++ kernel on the CPU and by the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels.cuda_place import cuda_place
from mmfl_fast.kernels.extension import _C


def cross_gram_sq(blocks: list[Tensor], mean_columns: bool, normalise_rows: bool, _tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.cross_gram_sq.cross_gram_sq`; here with a batch axis in front."""
    count = sum([block.shape[1] for block in blocks])
    out = torch.empty(blocks[0].shape[0], count, count, dtype=torch.float64, device="cpu")
    _C.cross_gram_sq(blocks, mean_columns, normalise_rows, out, torch.get_num_threads())
    return out


def cross_gram_sq_cuda(blocks: list[Tensor], mean_columns: bool, normalise_rows: bool, tf32: bool) -> Tensor:
    """Do the same on a GPU, asynchronously, on the current stream of the blocks' device."""
    device = blocks[0].device
    count = sum([block.shape[1] for block in blocks])
    out = torch.empty(blocks[0].shape[0], count, count, dtype=torch.float64, device=device)
    _C.cross_gram_sq_cuda(blocks, mean_columns, normalise_rows, tf32, out, *cuda_place(device))
    return out
