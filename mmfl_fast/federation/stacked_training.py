"""A round of several clients of one shape, all of which take each step at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import ClientState, Phase
from mmfl_fast.federation.client_stack import ClientStack, ClientStacks
from mmfl_fast.federation.local_result import LocalResult
from mmfl_fast.federation.row_layout import signature


def train_stack(
    clients: Sequence[Client],
    starts: Sequence[ClientState],
    phases: Sequence[Phase],
    passes: Sequence[Sequence[Tensor]],
    round_index: int,
    stacks: ClientStacks | None = None,
) -> list[LocalResult]:
    """Run the phases of one round.

    Nothing waits for the device: the numbers of all rows go there at once, and no value is read.

    Args:
        clients: of one task.
        starts: what each starts from, of one signature; never written to.
        phases: passes, in order.
        passes: of every client and phase, all its rows in the order of the batches.
        round_index: number of the round.
        stacks: that are kept from round to round; None takes fresh memory.

    Returns:
        One result per client, in order.
    """
    # Longest first, so that the clients still active at any step are a leading slice of the stack.
    order = sorted(range(len(clients)), key=lambda i: -clients[i].num_train)
    count, task = len(clients), clients[0].task
    lengths = [clients[i].num_train for i in order]
    if stacks is None:
        stack = ClientStack(count, task, starts[0])
    else:
        key = (clients[0].task_index, signature(starts[0]))
        stack = stacks.room_for(count, task, key, starts[0])
    stack.load([starts[i] for i in order])
    table = _sent(_row_table([passes[i] for i in order], lengths[0]), task.labels.device)
    for number, phase in enumerate(phases):
        for first in range(0, lengths[0], phase.batch_size):
            active = bisect_left(lengths, -first, key=lambda length: -length)
            stack.step(phase, table[number, :active, first : first + phase.batch_size], round_index)
        if phase.after is not None:
            params = stack.params(count)
            after = phase.after(params)
            stack.replace({n: t for n, t in after.items() if t is not params[n]})
    params, losses = stack.params(count), stack.losses(count)
    if stacks is not None:
        # The next clients take their place.
        params, losses = {n: t.clone() for n, t in params.items()}, losses.clone()
    steps = [sum(-(-length // phase.batch_size) for phase in phases) for length in lengths]
    losses = losses / _sent(np.array(steps, dtype=np.float32), losses.device)
    finite = torch.stack([t.reshape(count, -1).sum(dim=1) for t in params.values()]).isfinite().all(dim=0)
    # One call for all clients: a launch for each would take longer than the training of small models.
    own = zip(*(tensor.unbind() for tensor in params.values()), strict=True)
    results = [
        LocalResult(dict(zip(params, tensors, strict=True)), loss, taken, len(phases) * length, is_finite)
        for tensors, loss, taken, length, is_finite in zip(
            own, losses.unbind(), steps, lengths, finite.unbind(), strict=True
        )
    ]
    place = {i: position for position, i in enumerate(order)}
    return [results[place[i]] for i in range(count)]


def _row_table(passes: Sequence[Sequence[Tensor]], longest: int) -> npt.NDArray[np.int64]:
    """Row numbers of every phase and client, ``[phases, K, longest]``; -1 behind a client's last."""
    table = np.full((len(passes[0]), len(passes), longest), -1, dtype=np.int64)
    for position, own in enumerate(passes):
        for number, rows in enumerate(own):
            table[number, position, : len(rows)] = rows.numpy()
    return table


def _sent(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """On the device; nobody waits for the copy."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
