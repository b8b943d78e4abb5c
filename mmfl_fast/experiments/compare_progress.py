"""What a person sees while a comparison goes on: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# A log file of a night should stay readable, and its last line be news.
_FIRST_LINE_S = 15.0
_LINE_EVERY_S = 60.0


class CompareProgress:
    """Cells and rounds done and the time that remains, on standard error.

    Args:
        cells: how many in all.
        rounds: of all cells together.
        behind: rounds of them that an earlier call has behind it.
        show: None shows a bar on a terminal and lines elsewhere; False shows nothing.
        clock: seconds.
    """

    def __init__(
        self,
        cells: int,
        rounds: int,
        behind: int,
        show: bool | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._cells, self._rounds, self._behind = cells, rounds, behind
        self._lines = show is not False and not self._console.is_terminal
        self._clock = clock
        self._began = clock()
        self._next_line = self._began + _FIRST_LINE_S
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=show is False or self._lines,
        )
        self._task = self._bar.add_task("comparing", total=rounds, completed=behind)

    def __enter__(self) -> CompareProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, cells_done: int, rounds_done: int, running: str) -> None:
        """Show how far it is.

        Args:
            cells_done: cells that are complete.
            rounds_done: rounds of all cells.
            running: what goes on at the moment.
        """
        self._bar.update(self._task, completed=rounds_done, description=f"{cells_done} of {self._cells} runs")
        now = self._clock()
        if not self._lines or (now < self._next_line and cells_done < self._cells):
            return
        self._next_line = now + _LINE_EVERY_S
        told = (
            f"{cells_done} of {self._cells} runs, {rounds_done} of {self._rounds} rounds "
            f"({100 * rounds_done // max(1, self._rounds)} %), {_duration(now - self._began)} so far, "
            f"{self._remaining(rounds_done, now)} to go"
        )
        told += f"; now {running}" if running else ""
        self._console.print(told, soft_wrap=True, highlight=False, markup=False)

    def _remaining(self, rounds_done: int, now: float) -> str:
        done = rounds_done - self._behind
        if done <= 0:
            return "unknown"
        return f"about {_duration((now - self._began) / done * (self._rounds - rounds_done))}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
