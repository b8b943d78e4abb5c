"""Who takes part in a round."""

from __future__ import annotations

from collections.abc import Sequence

from mmfl_fast.data import Client
from mmfl_fast.federation.streams import Purpose, stream


def sample_clients(
    clients: Sequence[Client], participation: float, round_index: int, seed: int
) -> list[Client]:
    """Draw the participants of a round, in the order of their index.

    Args:
        clients: the federation's; those without a training row never take part.
        participation: share drawn without replacement, at least one client; 1.0 takes all.
        round_index: number of the round.
        seed: of the run.
    """
    able = [c for c in clients if c.num_train]
    if participation >= 1.0:
        return able
    count = max(1, round(participation * len(able)))
    chosen = stream(seed, Purpose.SAMPLING, round_index).choice(len(able), size=count, replace=False)
    return [able[i] for i in sorted(chosen.tolist())]
