"""One model per task, averaged by data: what the methods have in common whose clients share all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.algorithms.fedavg import group_means
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import Algorithm, ClientState, ParameterTable, State, Uploads


@dataclass(frozen=True)
class TaskModels(State):
    """What the server keeps.

    Attributes:
        models: task number -> the model of the task's clients.
        task: int64 ``[K]``, the task of each client.
    """

    models: ParameterTable
    task: Tensor


class TaskAverage(Algorithm):
    """FedAvg inside each task, ``theta = sum_i n_i theta_i / n``; tasks do not meet."""

    def initial_models(self, federation: Federation, generator: torch.Generator) -> Iterable[ClientState]:
        """One start per task."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_models()")

    def setup(self, federation: Federation, generator: torch.Generator) -> Any:
        """The starts, and nothing that is a client's own."""
        starts = self.initial_models(federation, generator)
        return TaskModels(
            shared={},
            personal=ParameterTable({}),
            models=ParameterTable(dict(enumerate(starts))),
            task=torch.from_numpy(federation.clients.task_numbers),
        )

    def broadcast(self, state: Any, client: Client) -> ClientState:
        """Send the model of the client's task."""
        model: ClientState = state.models[client.task_index]
        return model

    def aggregate(self, state: Any, uploads: Uploads, weights: Tensor) -> Any:
        """Average the models of each task that took part; the others keep theirs."""
        return replace(state, models=state.models.replace(group_means(state.task, uploads, weights)))
