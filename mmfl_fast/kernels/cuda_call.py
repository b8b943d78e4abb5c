"""Where a CUDA kernel runs, as ``_C`` takes it."""

from __future__ import annotations

import torch
from torch import Tensor


def cuda_call(device: torch.device, workspace_bytes: int) -> tuple[tuple[int, int, int, int], Tensor]:
    """Device, current stream and fresh working memory.

    Returns:
        The last four arguments of a ``_C.<primitive>_cuda``, and the working memory, to be kept until it
        returns. Memory freed after that is reused on the same stream only, behind the kernel.
    """
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    return (workspace.get_device(), stream, workspace.data_ptr(), workspace_bytes), workspace
