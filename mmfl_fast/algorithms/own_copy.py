"""A client's own copy of parts that it also exchanges: what it predicts with after adapting them."""

from __future__ import annotations

from mmfl_fast.federation import ClientState, part_of

OWN = "own"
"""The part that holds the copy; the copy of ``"f.0.weight"`` is ``"own.f.0.weight"``."""


def with_own_copy(params: ClientState, parts: tuple[str, ...]) -> ClientState:
    """Set or renew the copy of ``parts``. It shares no storage: optimisers write in place."""
    copies = {f"{OWN}.{n}": t.clone() for n, t in params.items() if part_of(n) in parts}
    return {**params, **copies}


def own_copy(params: ClientState) -> ClientState:
    """The copy alone, by the names of what was copied."""
    return {n.removeprefix(f"{OWN}."): t for n, t in params.items() if part_of(n) == OWN}
