"""Work of a GPU that is recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def record_launches(work: Callable[[], None]) -> Callable[[], None]:
    """Record what ``work`` launches on the current device, without running it; returns what runs it.

    It reads and writes the same memory every time, so what ``work`` takes and leaves has to stay alive. It
    must have run before: libraries set themselves up at their first call, which cannot be recorded.

    Raises:
        RuntimeError: ``work`` waits for the device or copies from memory that is not pinned.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(torch.cuda.current_device())):
        work()
    return graph.replay


@cache
def _pool(device: int) -> Any:
    """Memory that all recordings of a device share: they run one after the other and leave nothing in it."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()
