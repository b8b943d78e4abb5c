"""FedAvg per group: weighted averaging among clients of one modality and task (papers.md 5.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.algorithms.plain_training import PlainTraining
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import ClientState, ParameterTable, State, Uploads


@dataclass(frozen=True)
class FedAvgState(State):
    """What the server keeps.

    Attributes:
        models: group number -> the group's whole model.
        group: int64 ``[K]``, the group of each client.
    """

    models: ParameterTable
    group: Tensor


class FedAvg(PlainTraining):
    """``theta_g = sum_i n_i theta_i / n_g`` over the whole model of a group; nothing crosses groups."""

    def setup(self, federation: Federation, generator: torch.Generator) -> FedAvgState:
        """Group the clients by task and by the modalities they hold."""
        models = self.initial_models(federation, generator)
        kinds, of_client = federation.clients.kinds
        return FedAvgState(
            shared={},
            personal=ParameterTable({}),
            models=ParameterTable({number: models[kind.task_index] for number, kind in enumerate(kinds)}),
            group=torch.from_numpy(of_client),
        )

    def broadcast(self, state: FedAvgState, client: Client) -> ClientState:
        """Send the model of the client's group."""
        return state.models[int(state.group[client.index])]

    def aggregate(self, state: FedAvgState, uploads: Uploads, weights: Tensor) -> FedAvgState:
        """Average each group that took part; the others keep their model."""
        means = group_means(state.group, uploads, weights)
        return replace(state, models=state.models.replace(means))


def group_means(
    group: Tensor, uploads: Uploads, weights: Tensor, part: str | None = None
) -> dict[int, ClientState]:
    """Data-weighted mean of the uploads of each group that took part.

    Args:
        group: int64 ``[clients of the federation]``.
        uploads: of the K clients of the round.
        weights: float64 ``[K]``.
        part: of the uploads; None takes everything.
    """
    numbers = group[[c.index for c in uploads.clients]]
    means: dict[int, ClientState] = {}
    for number in numbers.unique().tolist():
        members = (numbers == number).nonzero().flatten().tolist()
        means[number] = ops.weighted_mean(uploads.select(members).rows(part), weights[members])
    return means
