"""How long work took, without waiting for a GPU to finish it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Seconds of this thread's processor time, which other work on the machine hardly changes."""

    def __init__(self) -> None:
        self._began = self._ended = time.thread_time()

    def stop(self) -> None:
        """End what is measured."""
        self._ended = time.thread_time()

    def seconds(self) -> float:
        """From its making to ``stop``."""
        return self._ended - self._began


class GpuStopwatch(Stopwatch):
    """Seconds on the GPU's own clock, between what was launched before and after."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._events[0].record(self._stream)

    def stop(self) -> None:
        """End what is measured."""
        self._events[1].record(self._stream)

    def seconds(self) -> float:
        """From its making to ``stop``; waits until the GPU has come there."""
        self._events[1].synchronize()
        milliseconds: float = self._events[0].elapsed_time(self._events[1])
        return milliseconds / 1000


def started(device: torch.device) -> Stopwatch:
    """A running one for work on a device."""
    return GpuStopwatch(device) if device.type == "cuda" else Stopwatch()
