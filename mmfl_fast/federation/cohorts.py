"""Which clients are trained together: cohorts of one shape, cut into chunks that fit."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import ClientState, Phase
from mmfl_fast.federation.machine_limits import free_memory
from mmfl_fast.federation.row_layout import Signature, signature
from mmfl_fast.federation.step_memory import bytes_per_client


class ChunkSizes:
    """Clients that are trained together, of each shape: the same number in all rounds of a run.

    Args:
        chunk: asked for; None lets the device decide. On a CPU that is one, because the stacked weights of
            many clients leave the cache; on a GPU as many as the budget holds.
        memory_gib: budget in GiB for a chunk on a GPU; None takes half of what is free.
    """

    def __init__(self, chunk: int | None, memory_gib: float | None) -> None:
        self._chunk = chunk
        self._memory_gib = memory_gib
        self._fitted: dict[Hashable, int] = {}

    def of(self, client: Client, start: ClientState, phases: Sequence[Phase]) -> int:
        """Size for clients like this one, which has the most rows of them."""
        device = client.task.labels.device
        if self._chunk is not None or device.type == "cpu":
            return self._chunk or 1
        key = (client.task_index, signature(start))
        if key not in self._fitted:
            needed = bytes_per_client(client, start, phases)
            budget = free_memory(device).free / 2 if self._memory_gib is None else self._memory_gib * 2**30
            self._fitted[key] = max(1, int(budget / needed))
        return self._fitted[key]


def cut_cohorts(
    clients: Sequence[Client], starts: Sequence[ClientState], phases: Sequence[Phase], sizes: ChunkSizes
) -> list[list[int]]:
    """Group clients that can be stacked and cut the groups into chunks.

    Args:
        clients: of this round.
        starts: what each starts from.
        phases: of the round.
        sizes: of the chunks.

    Returns:
        Positions in ``clients``, chunk by chunk, the costliest chunk first.
    """
    cohorts: dict[tuple[int, Signature], list[int]] = {}
    for position, (client, start) in enumerate(zip(clients, starts, strict=True)):
        cohorts.setdefault((client.task_index, signature(start)), []).append(position)
    chunks: list[list[int]] = []
    for members in cohorts.values():
        # Clients of like size side by side: the stack then seldom waits for its longest member.
        members.sort(key=lambda p: (-clients[p].num_train, p))
        size = sizes.of(clients[members[0]], starts[members[0]], phases)
        chunks += [members[i : i + size] for i in range(0, len(members), size)]
    return sorted(chunks, key=lambda c: -sum(clients[p].num_train for p in c))
