"""The threads that kernels and torch's own loops share."""

from __future__ import annotations

from collections.abc import Callable

from mmfl_fast.kernels.extension import _C, missing


def on_threads(function: Callable[[], None], threads: int) -> None:
    """Call ``function`` on so many threads at once, and return when all have returned.

    The caller's is among them, and the others are the team of torch's OpenMP loops, where there is one: its
    threads spin for milliseconds after each loop, and threads of our own would have to share the cores with
    them. Without the extension, and inside of such a call, the caller alone calls it.

    Raises:
        BaseException: the first that a call raises, after all have returned.
    """
    if missing:
        function()
    else:
        _C.on_threads(function, threads)
