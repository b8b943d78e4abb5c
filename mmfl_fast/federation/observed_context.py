"""A context that tells whether a loss depends on the round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfl_fast.federation.algorithm import Context


class ObservedContext(Context):
    """A context that remembers whether somebody looked at the number of the round.

    Attributes:
        round_seen: whether.
    """

    round_seen: bool = False

    def __getattribute__(self, name: str) -> Any:
        if name == "round":
            self.round_seen = True
        return super().__getattribute__(name)

    def __getitem__(self, key: Any) -> Any:
        self.round_seen = True
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        self.round_seen = True
        return super().__iter__()
