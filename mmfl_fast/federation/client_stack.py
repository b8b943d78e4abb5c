"""Clients of one shape side by side, and the steps that move all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmfl_fast.data import Task
from mmfl_fast.federation.algorithm import Batch, ClientState, Phase
from mmfl_fast.federation.batching import gather_stacked
from mmfl_fast.federation.observed_context import ObservedContext
from mmfl_fast.federation.optimisers import Slots, clip_gradients

# Remembers what the work given to it would do, without doing it, and returns what does it.
Record = Callable[[Callable[[], None]], Callable[[], None]]


class _Recorded(NamedTuple):
    """A step that can be taken again.

    Attributes:
        take: does so.
        round: for which it holds; None for all, if the loss does not look at the round.
    """

    take: Callable[[], None]
    round: int | None


class ClientStack:
    """Parameters of up to so many clients, one behind the other, in memory that stays where it is.

    Steps are taken by the leading clients, those with the most rows. With ``record`` a step that was taken
    once, by as many clients and rows, is recorded the second time and repeated from then on: on a GPU that
    spares the launches, which for small models take longer than what they launch.

    Args:
        capacity: clients it has room for.
        task: of all of them.
        like: state of one of them.
        record: see above; None takes every step anew.

    Attributes:
        task: of the clients.
        capacity: most clients.
    """

    def __init__(self, capacity: int, task: Task, like: ClientState, record: Record | None = None) -> None:
        self.task = task
        self.capacity = capacity
        self._record = record
        self._params = {n: t.new_empty((capacity, *t.shape)) for n, t in like.items()}
        self._starts = {n: torch.empty_like(t) for n, t in self._params.items()}
        self._losses = torch.empty(capacity, device=task.labels.device)
        self._slots: dict[str, Slots] = {}
        self._begun: set[str] = set()
        self._rows: dict[int, Tensor] = {}
        self._noise: dict[Hashable, Tensor] = {}
        self._noise_round = -1
        # Step -> the round it was last taken in without a recording, and whether its loss looked at it.
        self._taken: dict[Hashable, tuple[int, bool]] = {}
        self._recorded: dict[Hashable, _Recorded] = {}
        self._used: set[Hashable] = set()
        self._round_seen = False

    def load(self, starts: Sequence[ClientState]) -> None:
        """Put clients in, those with the most rows first."""
        count = len(starts)
        for name, room in self._params.items():
            tensors = [start[name] for start in starts]
            if all(tensor is tensors[0] for tensor in tensors):
                room[:count] = tensors[0]
            else:
                torch.stack(tensors, out=room[:count])
            self._starts[name][:count] = room[:count]
        self._losses.zero_()
        self._begun.clear()

    def params(self, count: int) -> ClientState:
        """State of the leading clients, ``[count, ...]``, where it lies."""
        return {n: t[:count] for n, t in self._params.items()}

    def losses(self, count: int) -> Tensor:
        """Sum over the steps of the leading clients, ``[count]``, where it lies."""
        return self._losses[:count]

    def replace(self, params: ClientState) -> None:
        """Take over parameters of the leading clients."""
        for name, tensor in params.items():
            self._params[name][: len(tensor)] = tensor

    def forget_unused(self) -> None:
        """Let go of the recordings that were not used since the last call."""
        self._recorded = {key: step for key, step in self._recorded.items() if key in self._used}
        self._taken = {key: taken for key, taken in self._taken.items() if key in self._used}
        self._used = set()

    def step(self, phase: Phase, rows: Tensor, round_index: int) -> None:
        """Take one step of a phase.

        Args:
            phase: the pass.
            rows: int64 ``[k, B]``, row numbers of the batches of the leading clients; -1 is padding.
            round_index: number of the round.
        """
        count, width = rows.shape
        room = self._rows.get(width)
        if room is None:
            room = self._rows[width] = rows.new_empty((self.capacity, width))
        room[:count] = rows
        slots = self._slots_of(phase)
        if self._noise_round != round_index:
            self._noise_round, self._noise = round_index, {}

        def take() -> None:
            self._take(phase, room[:count], slots, round_index)

        key = (phase.loss, phase.trainable, phase.fixed, phase.optimiser, phase.largest_norm, count, width)
        if self._record is None or not _is_hashable(key):
            take()
            return
        self._used.add(key)
        recorded = self._recorded.get(key)
        if recorded is not None and recorded.round in (None, round_index):
            recorded.take()
            return
        taken_in, round_seen = self._taken.get(key, (-1, False))
        if taken_in < 0 or (round_seen and taken_in != round_index):
            self._round_seen = False
            take()
            self._taken[key] = (round_index, self._round_seen)
            return
        again = self._record(take)
        self._recorded[key] = _Recorded(again, round_index if round_seen else None)
        again()

    def _slots_of(self, phase: Phase) -> Slots:
        """Memory of a phase's optimiser, fresh the first time that a phase of this name runs."""
        if phase.name not in self._begun:
            self._begun.add(phase.name)
            moving = [self._params[n] for n in phase.moving(self._params)]
            fresh = phase.optimiser.slots(moving)
            kept = self._slots.get(phase.name)
            if kept is None or [[t.shape for t in slot] for slot in kept] != [
                [t.shape for t in slot] for slot in fresh
            ]:
                self._slots[phase.name] = fresh
            else:
                for slot, new in zip(kept, fresh, strict=True):
                    torch._foreach_copy_(slot, new)
        return self._slots[phase.name]

    def _take(self, phase: Phase, rows: Tensor, slots: Slots, round_index: int) -> None:
        count = len(rows)
        names = phase.moving(self._params)
        params = self.params(count)
        moving = {n: params[n] for n in names}
        still = {n: t for n, t in params.items() if n not in moving}

        def gradients_and_loss(
            moving: ClientState, still: ClientState, start: ClientState, batch: Batch
        ) -> tuple[list[Tensor], Tensor]:
            context = _HeldNoise(start, round_index)
            context.held = self._noise

            def loss(moving: ClientState) -> Tensor:
                return phase.loss({**still, **moving}, batch, context)

            found, value = torch.func.grad_and_value(loss)(moving)
            self._round_seen |= context.round_seen
            gradients = list(found.values())
            if phase.largest_norm is not None:
                gradients = clip_gradients(gradients, phase.largest_norm)
            return gradients, value

        start = {n: t[:count] for n, t in self._starts.items()}
        batch = gather_stacked(self.task, rows)
        gradients, value = torch.func.vmap(gradients_and_loss)(moving, still, start, batch)
        phase.optimiser.step(list(moving.values()), gradients, [[s[:count] for s in slot] for slot in slots])
        self._losses[:count] += value.detach()


def _is_hashable(key: object) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


class _HeldNoise(ObservedContext):
    """A context that brings the noise of a round to the device once.

    Attributes:
        held: where it is kept.
    """

    held: dict[Hashable, Tensor]

    def noise(self, like: Tensor, width: int) -> Tensor:
        key = (len(like), width, like.dtype)
        if key not in self.held:
            # What is made inside a transform of torch.func belongs to it, and ends with it.
            with torch._C._DisableFuncTorch():
                self.held[key] = super().noise(like, width)
        self.round_seen = True
        return self.held[key]


class ClientStacks:
    """The stacks of a run, kept from round to round.

    Args:
        record: of their steps; None takes every step anew.
    """

    def __init__(self, record: Record | None) -> None:
        self._record = record
        self._stacks: dict[Hashable, ClientStack] = {}

    def begin_round(self) -> None:
        """Let go of the recordings that the last round did not need."""
        for stack in self._stacks.values():
            stack.forget_unused()

    def room_for(self, count: int, task: Task, key: Hashable, like: ClientState) -> ClientStack:
        """The stack for clients of a task and signature, with room for so many."""
        stack = self._stacks.get(key)
        if stack is None or stack.capacity < count:
            self._stacks.pop(key, None)
            stack = self._stacks[key] = ClientStack(count, task, like, self._record)
        return stack
