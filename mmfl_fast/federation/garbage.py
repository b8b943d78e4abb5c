"""Python's search for garbage, kept to what a run makes.

A full search walks every object of the process, most of which are the imported libraries'. The clients of a
round, who come and go, bring one about every other round: with a thousand small ones a quarter of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

_FULL = 2


@contextmanager
def searched_once() -> Iterator[None]:
    """Inside the block, what the first full search has found to be no garbage is not searched again.

    Nothing is searched earlier than it would be anyway. Objects that somebody has set aside already
    (``gc.freeze``) are not touched, and then nothing changes.
    """
    if gc.get_freeze_count():
        yield
        return
    searched = False

    def set_aside(phase: Literal["start", "stop"], told: dict[str, Any]) -> None:
        nonlocal searched
        if phase == "stop" and told["generation"] == _FULL and not searched:
            searched = True
            gc.freeze()

    gc.callbacks.append(set_aside)
    try:
        yield
    finally:
        gc.callbacks.remove(set_aside)
        if searched:
            gc.unfreeze()
