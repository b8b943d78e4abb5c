"""What a round made of its clients, from all ranks that trained some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import Uploads
from mmfl_fast.federation.ranks import Ranks
from mmfl_fast.federation.shared_uploads import share_uploads
from mmfl_fast.federation.tensor_exchange import Layout, exchange_tensors


@dataclass(frozen=True)
class Outcome:
    """What a round made of one client.

    Attributes:
        sent: its upload; empty for clients of other ranks, see :func:`outcomes_of_all`.
        kept: what stays with it; may be empty for clients of other ranks.
        loss: mean over the steps.
        steps: optimiser steps taken.
        samples: rows seen, each as often as it was seen.
        finite: whether its parameters are.
        seconds: that its training took, its share of those of a stack.
        bytes_up: of its upload.
        bytes_down: of what it was sent.
    """

    sent: dict[str, Tensor]
    kept: dict[str, Tensor]
    loss: float
    steps: int
    samples: int
    finite: bool
    seconds: float
    bytes_up: int
    bytes_down: int


def outcomes_of_all(
    ranks: Ranks,
    clients: Sequence[Client],
    shares: Sequence[Sequence[int]],
    train: Callable[[], list[Outcome]],
    device: torch.device,
    kept_everywhere: bool,
) -> tuple[list[Outcome], Uploads]:
    """Train this rank's share of the clients of a round, and return what became of all of them, in order.

    Args:
        ranks: of the run.
        clients: of the round.
        shares: positions of each rank's clients.
        train: gives the outcomes of this rank's share.
        device: of the tensors.
        kept_everywhere: whether what stays with a client goes to all ranks, too, or only to its own.

    Raises:
        Exception: of ``train``, in the rank where it failed.
        RankError: in the other ranks; or a rank is gone.
    """
    if ranks.world == 1:
        outcomes = train()
        return outcomes, Uploads(clients, [o.sent for o in outcomes])
    sent: list[dict[str, Tensor]] = []
    kept: list[dict[str, Tensor]] = []

    def work() -> tuple[tuple[list[_Plain], Layout], list[dict[str, Tensor]]]:
        own = train()
        sent.extend(o.sent for o in own)
        kept.extend(o.kept for o in own)
        plain = [
            _Plain(o.loss, o.steps, o.samples, o.finite, o.seconds, o.bytes_up, o.bytes_down) for o in own
        ]
        return (plain, Layout.of(sent)), kept if kept_everywhere else [{} for _ in own]

    reports = exchange_tensors(ranks, work, device)
    uploads = share_uploads(ranks, clients, shares, sent, [layout for (_, layout), _ in reports], device)
    found: dict[int, Outcome] = {}
    for rank, (share, ((plain, _), rows)) in enumerate(zip(shares, reports, strict=True)):
        staying = kept if rank == ranks.rank and not kept_everywhere else rows
        for position, values, row in zip(share, plain, staying, strict=True):
            found[position] = Outcome({}, row, *values)
    return [found[position] for position in range(len(clients))], uploads


class _Plain(NamedTuple):
    """The numbers of an outcome."""

    loss: float
    steps: int
    samples: int
    finite: bool
    seconds: float
    bytes_up: int
    bytes_down: int
