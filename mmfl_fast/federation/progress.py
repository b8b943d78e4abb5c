"""What a person sees while a run goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class RateColumn(ProgressColumn):
    """Completed units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Show the rate once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} {self._unit}/s")


class RoundProgress:
    """A bar with rounds per second, remaining time and current accuracy, on standard error.

    Args:
        label: what runs.
        rounds: how many in all.
        done: rounds that a resumed run has behind it.
        show: None shows it on a terminal only.
    """

    def __init__(self, label: str, rounds: int, done: int, show: bool | None) -> None:
        visible = sys.stderr.isatty() if show is None else show
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            RateColumn("rounds"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[score]}"),
            console=Console(stderr=True),
            disable=not visible,
        )
        self._score = ""
        self._task = self._bar.add_task(label, total=rounds, completed=done, score=self._score)

    def __enter__(self) -> RoundProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, metrics: Mapping[str, Any]) -> None:
        """One round is done."""
        if "accuracy" in metrics:
            self._score = f"accuracy {metrics['accuracy']:.4f}"
        self._bar.update(self._task, advance=1, score=self._score)
