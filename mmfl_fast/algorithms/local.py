"""Local: every client trains alone (baseline of M3Fed, papers.md 5.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.algorithms.plain_training import PlainTraining
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import ClientState, ParameterTable, State, Uploads


class Local(PlainTraining):
    """No exchange: all parts are personal and nothing is uploaded."""

    personal = ("*",)

    def setup(self, federation: Federation, generator: torch.Generator) -> State:
        """Give every client its own copy of its task's start."""
        models = self.initial_models(federation, generator)
        return State({}, ParameterTable.of_kinds(models, federation.clients.task_numbers))

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send nothing."""
        del params, client
        return {}

    def aggregate(self, state: State, uploads: Uploads, weights: Tensor) -> State:
        """Change nothing."""
        del uploads, weights
        return state
