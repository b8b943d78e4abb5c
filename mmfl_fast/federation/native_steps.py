"""Local training by the native kernel: which passes it can take, and how they run.

A loss is recorded for a number of rows. The last batch of a pass may be smaller: it is filled up with rows
labelled -100, which a loss ignores, to the next size of B, B / 2, B / 4, ... Where pictures are convolved a
row costs far more, and there are three more sizes between each two.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import ClientState, Context, Phase
from mmfl_fast.federation.batching import PADDING_LABEL, gather
from mmfl_fast.federation.observed_context import ObservedContext
from mmfl_fast.federation.optimisers import Adam, Optimiser, Sgd, Slots
from mmfl_fast.federation.row_layout import signature
from mmfl_fast.federation.streams import normal_rows
from mmfl_fast.kernels import client_step
from mmfl_fast.kernels.client_step import NotCoveredError, Rates, Sources, StepProgram

_log = logging.getLogger(__name__)
_SMALLEST_CAPACITY = 4
# A phase whose loss is another function in every round is not worth recording.
_MOST_LOSSES = 8
# Of parameters; what is not float32 does not move.
_DTYPES = (torch.float32, torch.bool, torch.int64)


# What the loss may ask of its clients: for each modality of the task whether no row has it; and whether all
# rows have all of them, None if the loss does not ask that.
_Told = tuple[tuple[bool, ...], bool | None]


@dataclass(frozen=True)
class _Step:
    """A program and where its batches come from.

    Attributes:
        program: of the step.
        sources: of the task's rows.
        round: for which it holds; None for all, if the loss does not look at the round.
        told: of its clients; None where it holds for any, because the loss does not ask.
        noise: rows and width of the noise that the loss takes from the context.
    """

    program: StepProgram
    sources: Sources
    round: int | None
    told: _Told | None
    noise: tuple[tuple[int, int], ...]


class NativeSteps:
    """The recorded steps of a run. ``prepare`` fills it; ``run`` may be called from several threads."""

    def __init__(self) -> None:
        self._steps: dict[Hashable, _Step | None] = {}
        self._losses: dict[Hashable, set[Hashable]] = {}
        # What no thread works in at the moment.
        self._scratch: list[Tensor] = []

    def prepare(
        self,
        clients: Sequence[Client],
        starts: Sequence[ClientState],
        phases: Sequence[Phase],
        round_index: int,
    ) -> None:
        """Record what the clients of a round need and what is not there yet."""
        for client, start in zip(clients, starts, strict=True):
            for phase in phases:
                key = _key(phase, start, client)
                if key is None:
                    continue
                seen = self._losses.setdefault((phase.name, key[1:]), set())
                if phase.loss not in seen and len(seen) == _MOST_LOSSES:
                    continue
                seen.add(phase.loss)
                for _, capacity in _pieces(client.num_train, phase.batch_size, start):
                    place = self._place(key, capacity, client)
                    step = self._steps.get(place)
                    if place in self._steps and (step is None or step.round in (None, round_index)):
                        continue
                    step = _recorded(client, start, phase, capacity, round_index)
                    told = (_absent(client), _complete(client)) if step is None else step.told
                    self._steps[key, capacity, told] = step

    def run(
        self,
        client: Client,
        params: ClientState,
        moved: ClientState,
        slots: Slots,
        phase: Phase,
        rows: Tensor,
        context: Context,
    ) -> tuple[Tensor, bool] | None:
        """Take the steps of one pass.

        Args:
            client: whose rows the batches are.
            params: what the pass begins with.
            moved: takes the new values of the parameters that the phase trains, in their order; may share
                memory with the old.
            slots: memory of the phase's optimiser, written to.
            phase: the pass.
            rows: numbers of the rows, in the order of the batches.
            context: what the loss sees of the round.

        Returns:
            The loss of every batch, and whether ``moved`` is finite; or None if the pass has no native form,
            and then nothing has happened.
        """
        key = _key(phase, params, client)
        pieces = _pieces(len(rows), phase.batch_size, params)
        steps = [self._steps.get(self._place(key, capacity, client)) for _, capacity in pieces]
        if key is None or any(step is None or step.round not in (None, context.round) for step in steps):
            return None
        begun, start = _as_float(params), _as_float(context.start)
        remembered = slots[: _memories(phase.optimiser)]
        further = [*start.values(), *(t for slot in remembered for t in slot)]
        before, after = [*begun.values(), *further], [*{**begun, **moved}.values(), *further]
        if (
            signature(params) != signature(context.start)
            or any(len(slot) != len(moved) for slot in slots)
            or not all(t.is_contiguous() for t in before)
        ):
            return None
        losses = np.empty(-(-len(rows) // phase.batch_size), dtype=np.float32)
        scratch = self._free_scratch(max(step.program.scratch_size for step in steps if step))
        done, finite = 0, True
        for step, (count, capacity) in zip(steps, pieces, strict=True):
            assert step is not None
            noise = [normal_rows(*shape, context.round, 0).float() for shape in step.noise]
            finite = client_step.take_steps(
                step.program,
                [*(after if done else before), *noise],
                [*after, *noise],
                step.sources,
                rows.data_ptr() + done * rows.element_size(),
                count,
                min(count, phase.batch_size),
                capacity,
                _rates(phase.optimiser, slots),
                scratch,
                losses.ctypes.data + done // phase.batch_size * losses.itemsize,
            )
            done += count
            if isinstance(phase.optimiser, Adam):
                torch._foreach_add_(slots[2], -(-count // phase.batch_size))
        self._scratch.append(scratch)
        return torch.from_numpy(losses), finite

    def _free_scratch(self, size: int) -> Tensor:
        try:
            free = self._scratch.pop()
        except IndexError:
            return torch.empty(size)
        return free if len(free) >= size else torch.empty(size)

    def _place(self, key: Hashable, capacity: int, client: Client) -> Hashable:
        """Where the step is kept: with those of all clients that are alike in what the loss asks."""
        absent = _absent(client)
        shared: tuple[_Told | None, ...] = (None, (absent, None))
        for told in shared:
            if (key, capacity, told) in self._steps:
                return key, capacity, told
        return key, capacity, (absent, _complete(client))


def _recorded(
    client: Client, start: ClientState, phase: Phase, capacity: int, round_index: int
) -> _Step | None:
    try:
        return _record(client, start, phase, capacity, round_index)
    except NotCoveredError as reason:
        _log.debug("phase %r of %s takes the generic path: %s", phase.name, client.task.name, reason)
        return None


def why_not_native(client: Client, start: ClientState, phase: Phase) -> str | None:
    """Why a pass of a client takes autograd; None if there is native code for it."""
    obstacle = _obstacle(phase, start)
    if obstacle is not None:
        return obstacle
    try:
        _record(client, start, phase, min(client.num_train, phase.batch_size), 0)
    except NotCoveredError as reason:
        return str(reason)
    return None


def _obstacle(phase: Phase, params: ClientState) -> str | None:
    """What keeps a pass from being recorded at all."""
    if not isinstance(phase.optimiser, (Sgd, Adam)):
        return f"its optimiser is {type(phase.optimiser).__name__}"
    if not isinstance(phase.loss, Hashable):
        return "its loss cannot be told from others"
    if not all(t.dtype in _DTYPES and t.device.type == "cpu" for t in params.values()):
        return "its parameters are not all float32, or what is fixed bool or int64, on a CPU"
    return None


def _key(phase: Phase, params: ClientState, client: Client) -> tuple[Hashable, ...] | None:
    """What a recorded step depends on besides its number of rows; None where there is no native form."""
    if _obstacle(phase, params) is not None:
        return None
    return (
        phase.loss,
        phase.trainable,
        phase.fixed,
        _memories(phase.optimiser),
        phase.largest_norm,
        signature(params),
        client.task_index,
    )


def _memories(optimiser: Optimiser) -> int:
    """How many numbers an optimiser remembers of every element."""
    return 2 if isinstance(optimiser, Adam) else int(isinstance(optimiser, Sgd) and optimiser.momentum != 0)


def _rates(optimiser: Optimiser, slots: Slots) -> Rates:
    if isinstance(optimiser, Sgd):
        return Rates(optimiser.learning_rate, optimiser.momentum, optimiser.weight_decay)
    assert isinstance(optimiser, Adam)
    return Rates(
        learning_rate=optimiser.learning_rate,
        weight_decay=optimiser.weight_decay,
        beta1=optimiser.beta1,
        beta2=optimiser.beta2,
        epsilon=optimiser.epsilon,
        # All elements have gone through the same steps.
        steps_before=float(slots[2][0].flatten()[0]) if slots[2] else 0.0,
        cosine_period=optimiser.cosine_period or 0.0,
    )


def _absent(client: Client) -> tuple[bool, ...]:
    return tuple(modality not in client.modalities for modality in client.task.inputs)


def _complete(client: Client) -> bool:
    return bool(client.task.present[client.train_rows].all())


def _as_float(params: ClientState) -> ClientState:
    """The same with truth values and integers as the numbers that native code knows."""
    return {n: t if t.dtype == torch.float32 else t.float() for n, t in params.items()}


def _pieces(count: int, batch_size: int, params: ClientState) -> list[tuple[int, int]]:
    """Rows of the whole batches and of the last, each with the rows that a step is recorded for."""
    whole = count // batch_size * batch_size
    rest, capacity = count - whole, batch_size
    while rest <= -(-capacity // 2) < capacity and capacity // 2 >= _SMALLEST_CAPACITY:
        capacity = -(-capacity // 2)
    if any(tensor.dim() == 4 for tensor in params.values()):
        # Filters of pictures.
        step = -(-capacity // 8)
        capacity = min(capacity, -(-rest // step) * step)
    return [(rows, size) for rows, size in ((whole, batch_size), (rest, capacity)) if rows]


def _record(client: Client, start: ClientState, phase: Phase, capacity: int, round_index: int) -> _Step:
    task, names = client.task, phase.moving(start)
    sources = (*task.inputs.values(), task.present, task.labels)
    if not all(t.is_contiguous() for t in sources) or any(
        t.dtype != torch.float32 for t in task.inputs.values()
    ):
        raise NotCoveredError("the rows of its task are not contiguous float32")
    rows = client.train_rows[torch.arange(capacity) % client.num_train]
    batch = gather(task, rows)
    params = {n: t.clone(memory_format=torch.contiguous_format) for n, t in start.items()}
    context = _NoiseApart({n: t.clone() for n, t in params.items()}, round_index)
    leaves = [params[n].requires_grad_() for n in names]
    absent, complete, present = _absent(client), _complete(client), batch.inputs.present
    false = [column for column, is_absent in zip(present.unbind(dim=1), absent, strict=True) if is_absent]
    true = [present] if complete else []
    with torch.enable_grad():
        recording = client_step.record(lambda: phase.loss(params, batch, context), leaves, false, true)
    memories = range(_memories(phase.optimiser))
    kept = [torch.empty_like(t) for _ in memories for t in leaves]
    external = [*params.values(), *context.start.values(), *kept, *context.drawn]
    places = {name: number for number, name in enumerate(params)}
    first = 2 * len(params)
    moving = {places[n]: [first + m * len(names) + i for m in memories] for i, n in enumerate(names)}
    program = client_step.build_program(
        recording,
        [t.detach() for t in external],
        [*batch.inputs.values.values(), batch.inputs.present, batch.labels],
        moving,
        phase.largest_norm,
    )
    padding = [0] * (len(task.inputs) + 1) + [PADDING_LABEL]
    return _Step(
        program,
        Sources.of(sources, len(external), padding),
        round_index if context.round_seen else None,
        (absent, complete if True in recording.asked else None) if recording.asked else None,
        tuple((len(noise), noise.shape[1]) for noise in context.drawn),
    )


class _NoiseApart(ObservedContext):
    """A context whose noise does not count as a look at the round: later rounds put theirs in its place.

    Attributes:
        drawn: noise that was taken from it.
    """

    drawn: tuple[Tensor, ...] = ()

    def noise(self, like: Tensor, width: int) -> Tensor:
        seen = self.round_seen
        drawn = super().noise(like, width)
        if drawn.dtype == torch.float32:
            self.drawn, self.round_seen = (*self.drawn, drawn), seen
        return drawn
