"""Which clients are trained together: cohorts of one shape, cut into chunks that fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import ClientState
from mmfl_fast.federation.row_layout import Signature, signature

# Parameters, start, gradient, velocity and the activations of small models, in units of the parameters.
_COPIES_PER_CLIENT = 8


def cut_cohorts(
    clients: Sequence[Client], starts: Sequence[ClientState], chunk: int | None, memory_gib: float | None
) -> list[list[int]]:
    """Group clients that can be stacked and cut the groups into chunks.

    Args:
        clients: of this round.
        starts: what each starts from.
        chunk: clients per chunk; None lets the device decide. On a CPU that is one, because the stacked
            weights of many clients leave the cache; on a GPU as many as the memory budget holds.
        memory_gib: budget in GiB for a chunk on a GPU; None takes half of what is free.

    Returns:
        Positions in ``clients``, chunk by chunk, the costliest chunk first.
    """
    cohorts: dict[tuple[int, Signature], list[int]] = {}
    for position, (client, start) in enumerate(zip(clients, starts, strict=True)):
        cohorts.setdefault((client.task_index, signature(start)), []).append(position)
    chunks: list[list[int]] = []
    for members in cohorts.values():
        size = chunk or _automatic_chunk(starts[members[0]], memory_gib)
        # Clients of like size side by side: the stack then seldom waits for its longest member.
        members.sort(key=lambda p: (-clients[p].num_train, p))
        chunks += [members[i : i + size] for i in range(0, len(members), size)]
    return sorted(chunks, key=lambda c: -sum(clients[p].num_train for p in c))


def _automatic_chunk(start: ClientState, memory_gib: float | None) -> int:
    device = next(iter(start.values())).device
    if device.type == "cpu":
        return 1
    free = torch.cuda.mem_get_info(device)[0] / 2 if memory_gib is None else memory_gib * 2**30
    per_client = _COPIES_PER_CLIENT * sum(t.numel() * t.element_size() for t in start.values())
    return max(1, int(free // per_client))
