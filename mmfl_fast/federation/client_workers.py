"""One parallel region per round: each core takes clients, each client runs on one core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClientWorkers:
    """Maps a function over clients or chunks of clients.

    On a CPU as many threads as torch may use take the items, and torch's own threads are off inside, so a
    result has the same bits for every number of threads. On a GPU the items run one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        if self._threads > 1:
            # A new thread starts with OpenMP's own limit, and a matrix product does not ask torch for its.
            self._pool = ThreadPoolExecutor(
                self._threads, "mmfl-client", initializer=torch.set_num_threads, initargs=(1,)
            )
        self._limits_torch = device.type == "cpu"

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Apply ``function`` to every item; results in the order of the items."""
        if not self._limits_torch:
            return [function(item) for item in items]
        with one_torch_thread():
            if self._pool is None:
                return [function(item) for item in items]
            return self._share(self._pool, function, items)

    def _share(
        self, pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """Give each thread one task that takes items until there are none; a task per item is dear."""
        waiting = deque(enumerate(items))
        results: dict[int, Result] = {}
        problems: dict[int, Exception] = {}

        def work() -> None:
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

        for task in [pool.submit(work) for _ in range(self._threads)]:
            task.result()
        if problems:
            raise problems[min(problems)]
        return [results[position] for position in range(len(items))]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Switch torch's own threads off inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
