"""What local training makes of a client."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmfl_fast.federation.algorithm import ClientState


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
