"""One parallel region per round: each core takes clients, each client runs on one core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from mmfl_fast.kernels.threads import on_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_clients(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """Apply ``function`` to every client or chunk of clients; results in the order of the items.

    On a CPU as many threads as torch may use take the items, and torch's own threads are off inside, so a
    result has the same bits for every number of threads. On a GPU the items run one after the other.

    Raises:
        Exception: what ``function`` raised at the first of the items at which it did; no further item begins.
    """
    if device.type != "cpu":
        return [function(item) for item in items]
    waiting = deque(enumerate(items))
    results: dict[int, Result] = {}
    problems: dict[int, Exception] = {}

    def take_items() -> None:
        # On every thread: a matrix product does not ask the team, nor the thread that leads it, for a limit.
        torch.set_num_threads(1)
        while waiting:
            try:
                position, item = waiting.popleft()
            except IndexError:
                return
            try:
                results[position] = function(item)
            except Exception as problem:
                problems[position] = problem
                waiting.clear()
            except BaseException:
                waiting.clear()
                raise

    threads = torch.get_num_threads()
    with one_torch_thread():
        on_threads(take_items, threads)
    if problems:
        raise problems[min(problems)]
    return [results[position] for position in range(len(items))]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Switch torch's own threads off inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
