"""A client's round: its phases, for one client alone or for a stack of clients at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import Batch, ClientState, Context, Phase
from mmfl_fast.federation.batching import gather, gather_stacked, shuffled_rows
from mmfl_fast.federation.client_memory import ClientMemory
from mmfl_fast.federation.native_steps import NativeSteps
from mmfl_fast.federation.optimisers import Slots, clip_gradients
from mmfl_fast.federation.streams import Purpose, stream

_TRUE, _FALSE = torch.tensor(True), torch.tensor(False)


@dataclass(frozen=True)
class LocalResult:
    """What local training made of one client.

    Attributes:
        params: its state after the last phase.
        loss: mean over all steps of the round, 0-dim tensor.
        steps: optimiser steps taken.
        samples: rows seen, each as often as it was seen.
        finite: whether all of ``params`` is, 0-dim bool tensor.
    """

    params: ClientState
    loss: Tensor
    steps: int
    samples: int
    finite: Tensor


def train_clients(
    clients: Sequence[Client],
    starts: Sequence[ClientState],
    phases: Sequence[Phase],
    round_index: int,
    seed: int,
    native: NativeSteps | None = None,
    memory: ClientMemory | None = None,
) -> list[LocalResult]:
    """Run the phases of one round for clients of one task and one signature.

    Args:
        clients: each with at least one training row.
        starts: what each starts from; never written to.
        phases: passes, in order.
        round_index: number of the round; with ``seed`` and the client's index it fixes the batches.
        seed: of the run.
        native: steps prepared for this round; a client alone takes them where there are some. None for none.
        memory: for the results of clients alone; None takes fresh memory.

    Returns:
        One result per client, in order. It does not depend on which clients are trained together, beyond
        the rounding of batched against single matrix products.
    """
    draws = [stream(seed, Purpose.BATCHES, round_index, c.index) for c in clients]
    passes = [[shuffled_rows(c, draw) for _ in phases] for c, draw in zip(clients, draws, strict=True)]
    if len(clients) == 1:
        return [_train_one(clients[0], starts[0], phases, passes[0], round_index, native, memory)]
    return _train_stack(clients, starts, phases, passes, round_index)


def _train_one(
    client: Client,
    start: ClientState,
    phases: Sequence[Phase],
    passes: Sequence[Tensor],
    round_index: int,
    native: NativeSteps | None,
    memory: ClientMemory | None,
) -> LocalResult:
    # Nobody writes to the start: a parameter gets memory of its own in the first pass that moves it.
    params = dict(start)
    context = Context(start, round_index)
    slots_of: dict[str, Slots] = {}
    losses: list[Tensor] = []
    finite: Tensor | None = _TRUE
    for phase, rows in zip(phases, passes, strict=True):
        names = phase.moving(params)
        fresh = {n: params[n] for n in names if params[n] is start.get(n)}
        room = memory.like(fresh) if memory else {n: torch.empty_like(t) for n, t in fresh.items()}
        moved = {n: room.get(n, params[n]) for n in names}
        slots = slots_of.setdefault(phase.name, phase.optimiser.slots(list(moved.values())))
        taken = native.run(client, params, moved, slots, phase, rows, context) if native else None
        if taken is None:
            for name, tensor in room.items():
                tensor.copy_(params[name])
            losses.append(_take_steps(client, {**params, **moved}, names, slots, phase, rows, context))
            finite = None
        else:
            losses.append(taken[0])
            finite = finite if taken[1] else _FALSE
        params.update(moved)
        if phase.after is not None:
            params, finite = dict(phase.after(params)), None
    params = {n: t.clone() if t is start.get(n) else t for n, t in params.items()}
    if finite is None:
        finite = torch.stack([t.sum() for t in params.values()]).isfinite().all()
    # One call less for Python's lock to change hands in.
    loss = (losses[0] if len(losses) == 1 else torch.cat(losses)).mean()
    samples = sum(len(rows) for rows in passes)
    return LocalResult(params, loss, sum(map(len, losses)), samples, finite)


def _take_steps(
    client: Client,
    params: ClientState,
    names: Sequence[str],
    slots: Slots,
    phase: Phase,
    rows: Tensor,
    context: Context,
) -> Tensor:
    """Take the steps of one pass in place, and return their losses."""
    # The leaves share storage with params, so a step moves both.
    leaves = [params[n].detach().requires_grad_() for n in names]
    current = {**params, **dict(zip(names, leaves, strict=True))}
    losses = []
    for batch in rows.split(phase.batch_size):
        loss = phase.loss(current, gather(client.task, batch), context)
        gradients: Sequence[Tensor] = torch.autograd.grad(
            loss, leaves, allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            if phase.largest_norm is not None:
                gradients = clip_gradients(gradients, phase.largest_norm)
            phase.optimiser.step(leaves, gradients, slots)
        losses.append(loss.detach())
    return torch.stack(losses)


def _train_stack(
    clients: Sequence[Client],
    starts: Sequence[ClientState],
    phases: Sequence[Phase],
    passes: Sequence[Sequence[Tensor]],
    round_index: int,
) -> list[LocalResult]:
    # Longest first, so that the clients still active at any step are a leading slice of the stack.
    order = sorted(range(len(clients)), key=lambda i: -clients[i].num_train)
    task = clients[0].task
    params = {name: torch.stack([starts[i][name] for i in order]) for name in starts[0]}
    start = {name: tensor.clone() for name, tensor in params.items()}
    memory: dict[str, Slots] = {}
    total = torch.zeros(len(clients), device=task.labels.device)
    for number, phase in enumerate(phases):
        names = phase.moving(params)
        fixed = [n for n in params if n not in set(names)]
        slots = memory.setdefault(phase.name, phase.optimiser.slots([params[n] for n in names]))

        def objective(
            moving: ClientState, still: ClientState, batch: Batch, context: Context, phase: Phase = phase
        ) -> Tensor:
            return phase.loss({**still, **moving}, batch, context)

        def gradients_and_loss(
            moving: ClientState, still: ClientState, batch: Batch, context: Context, phase: Phase = phase
        ) -> tuple[list[Tensor], Tensor]:
            found, loss = torch.func.grad_and_value(objective)(moving, still, batch, context)
            gradients = list(found.values())
            if phase.largest_norm is not None:
                gradients = clip_gradients(gradients, phase.largest_norm)
            return gradients, loss

        step = torch.func.vmap(gradients_and_loss, in_dims=(0, 0, 0, Context(0, None)))  # type: ignore[arg-type]
        batches = [passes[i][number].split(phase.batch_size) for i in order]
        for position in range(len(batches[0])):
            rows = [b[position] for b in batches if position < len(b)]
            k = len(rows)
            moving = {n: params[n][:k] for n in names}
            gradients, loss = step(
                moving,
                {n: params[n][:k] for n in fixed},
                gather_stacked(task, rows),
                Context({n: t[:k] for n, t in start.items()}, round_index),
            )
            phase.optimiser.step(
                list(moving.values()),
                gradients,
                [[s[:k] for s in slot] for slot in slots],
            )
            total[:k] += loss.detach()
        if phase.after is not None:
            params = phase.after(params)
    finite = torch.stack([t.reshape(len(t), -1).sum(dim=1) for t in params.values()]).isfinite().all(dim=0)
    results: dict[int, LocalResult] = {}
    for position, i in enumerate(order):
        pairs = zip(phases, passes[i], strict=True)
        steps = sum(-(-len(rows) // phase.batch_size) for phase, rows in pairs)
        samples = sum(len(rows) for rows in passes[i])
        own = {name: tensor[position] for name, tensor in params.items()}
        results[i] = LocalResult(own, total[position] / steps, steps, samples, finite[position])
    return [results[i] for i in range(len(clients))]
