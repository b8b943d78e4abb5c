"""A progress line for loops that take seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def tracked(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield ``items``; show a progress line on stderr while that takes, if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    yield from track(
        items, description, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )
