"""A client's round: its phases, for a client alone; several go to :mod:`.stacked_training`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import ClientState, Context, Phase
from mmfl_fast.federation.batching import gather, shuffled_rows
from mmfl_fast.federation.client_memory import ClientMemory
from mmfl_fast.federation.client_stack import ClientStacks
from mmfl_fast.federation.local_result import LocalResult
from mmfl_fast.federation.native_steps import NativeSteps
from mmfl_fast.federation.optimisers import Slots, clip_gradients
from mmfl_fast.federation.stacked_training import train_stack
from mmfl_fast.federation.streams import Purpose, stream

_TRUE, _FALSE = torch.tensor(True), torch.tensor(False)


def train_clients(
    clients: Sequence[Client],
    starts: Sequence[ClientState],
    phases: Sequence[Phase],
    round_index: int,
    seed: int,
    native: NativeSteps | None = None,
    memory: ClientMemory | None = None,
    stacks: ClientStacks | None = None,
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
        stacks: for several clients; None takes fresh memory.

    Returns:
        One result per client, in order. It does not depend on which clients are trained together, beyond
        the rounding of batched against single matrix products.
    """
    draws = [stream(seed, Purpose.BATCHES, round_index, c.index) for c in clients]
    passes = [[shuffled_rows(c, draw) for _ in phases] for c, draw in zip(clients, draws, strict=True)]
    if len(clients) == 1:
        return [_train_one(clients[0], starts[0], phases, passes[0], round_index, native, memory)]
    return train_stack(clients, starts, phases, passes, round_index, stacks)


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
    for batch in rows.to(client.task.labels.device).split(phase.batch_size):
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
