"""Where a CUDA kernel runs, as ``_C`` takes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor


def cuda_place(device: torch.device) -> tuple[int, int, Callable[[int], Tensor]]:
    """The last three arguments of a ``_C.<primitive>_cuda``.

    Returns:
        The device's number, its current stream, and who allocates that many bytes of working memory there.
    """
    stream = torch.cuda.current_stream(device)
    allocate = partial(torch.empty, dtype=torch.uint8, device=device)
    return stream.device_index, stream.cuda_stream, allocate
