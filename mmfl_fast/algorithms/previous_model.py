"""The model a client made when it last took part, which stays with it: the negative of model contrasts."""

from __future__ import annotations

import torch

from mmfl_fast.algorithms.own_copy import OWN, with_own_copy
from mmfl_fast.federation import ClientState, part_of

PERSONAL = (OWN, "previous")
"""Parts to keep: the copy, and ``previous.exists``, 1 once there is one and 0 before."""


def no_previous_model(model: ClientState, parts: tuple[str, ...]) -> ClientState:
    """The two parts of a client that has not taken part; room for a copy of ``parts``."""
    copy = {n: t for n, t in with_own_copy(model, parts).items() if part_of(n) == OWN}
    return {**copy, "previous.exists": torch.zeros(())}


def with_previous_model(params: ClientState, parts: tuple[str, ...]) -> ClientState:
    """Make what ``parts`` hold now the previous model."""
    exists = torch.ones_like(params["previous.exists"])
    return {**with_own_copy(params, parts), "previous.exists": exists}
