"""That all ranks run the same, and hold the same state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmfl_fast.federation.algorithm import State
from mmfl_fast.federation.checkpoints import state_tensors, to_device, with_state_tensors
from mmfl_fast.federation.disk_table import DiskTable
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.ranks import Ranks
from mmfl_fast.federation.tensor_exchange import exchange_tensors

AnyState = TypeVar("AnyState", bound=State)
_CPU = torch.device("cpu")
# Of a tensor; other rounding shows in nearly all of them.
_ELEMENTS_COMPARED = 4096


def refuse_differing(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Make sure that all ranks were started alike.

    Args:
        ranks: of the run.
        facts: plain data that fixes the run's numbers, and the exchanges that it makes.

    Raises:
        ValueError: in all ranks; names what differs, and in which rank.
    """
    given = ranks.exchange(lambda: dict(facts))
    for rank, theirs in enumerate(given):
        for name in sorted(given[0].keys() | theirs.keys()):
            ours = given[0].get(name)
            if theirs.get(name) != ours:
                raise ValueError(
                    f"all processes of a run must be started alike: {name} is {theirs.get(name)!r} in rank "
                    f"{rank}, {ours!r} in rank 0"
                )


def same_state(ranks: Ranks, before: AnyState, state: AnyState, device: torch.device) -> AnyState:
    """Return a state on a device that is the same in all ranks: rank 0's, if what each computed differs.

    Of tables the rows are compared that have been replaced since the state before.

    Other processors and libraries round otherwise, and some decisions, such as who is in which cluster, hang
    on that. Parts that never leave a client come from the one rank that trained it, rows in files from the
    one that wrote them: they are not compared.
    """
    if ranks.world == 1:
        return state
    named = {field.name: getattr(state, field.name) for field in fields(state)}
    left_out: dict[str, Any] = {n: v for n, v in named.items() if n == "personal" or isinstance(v, DiskTable)}
    nothing: dict[str, Any] = dict.fromkeys(left_out, ParameterTable({}))
    of_server = replace(state, **nothing)
    mine = _sample(before, of_server)
    if len(set(ranks.exchange(lambda: mine))) == 1:
        return state
    return replace(to_device(state_of_first(ranks, of_server), device), **left_out)


def state_of_first(ranks: Ranks, state: AnyState) -> AnyState:
    """Return rank 0's state, of the layout of this rank's, on the CPU in the other ranks."""
    if ranks.world == 1:
        return state

    def work() -> tuple[None, list[dict[str, Tensor]]]:
        return None, [state_tensors(state)] if ranks.first else []

    _, rows = exchange_tensors(ranks, work, _CPU)[0]
    return state if ranks.first else with_state_tensors(state, rows[0])


def _sample(before: State, state: State) -> str:
    """Hash of the names, shapes and some of the elements of what a round has changed in a state."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor, count in _compared(before, state):
        hasher.update(repr((name, tuple(tensor.shape))).encode())
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // count)]
        hasher.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _compared(before: State, state: State) -> Iterator[tuple[str, Tensor, int]]:
    """Names, tensors, and how many elements are enough."""
    tables = {f.name: v for f in fields(state) if isinstance(v := getattr(state, f.name), ParameterTable)}
    without: dict[str, Any] = dict.fromkeys(tables, ParameterTable({}))
    for name, tensor in state_tensors(replace(state, **without)).items():
        yield name, tensor, _ELEMENTS_COMPARED
    for field, table in tables.items():
        rows = table.changed_since(getattr(before, field))
        for row in rows:
            for name, tensor in table[row].items():
                yield f"{field}/{row}/{name}", tensor, 1 + _ELEMENTS_COMPARED // len(rows)
