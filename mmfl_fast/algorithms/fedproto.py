"""FedProto: Federated Prototype Learning across Heterogeneous Clients (AAAI 2022), on the fusion model.

Clients and server exchange the mean feature of every class, and clients are drawn to the server's:

    p_i^k = mean of z over the client's rows of class k,  P^k = mean of p_i^k over the clients that sent k
    L = CE + lambda mean_rows ||z - P^y||^2 / dim z

A client without rows of a class says nothing about it, and a class that no client of a round has keeps its
last prototype. Rows whose class never had one are left out of the mean, so that the first round is CE alone.
The distance is that of the released code, a mean over dimensions, and so is the plain average of the
prototypes; ``prototype_weights: count`` weights them by rows of the class, as the paper does. ``min_count``
is MFCPL's rule that no prototype may be a row; the original sends all.

In the original nothing but prototypes is exchanged and every client keeps a model of its own, which never
learns of modalities that the client lacks: ``exchange_weights`` off. By default the weights are averaged
besides, as FedAvg does and as comparisons of methods for missing modalities do (papers.md 6.6).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn
from mmfl_fast.algorithms.fusion_backbone import FusionConfig
from mmfl_fast.algorithms.fusion_fedavg import FusionFedAvg
from mmfl_fast.algorithms.mfcpl import prototype_regression
from mmfl_fast.algorithms.prototype_exchange import local_prototypes, mean_prototypes
from mmfl_fast.algorithms.task_models import TaskModels
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import (
    AlgorithmConfig,
    Batch,
    ClientState,
    Context,
    ParameterTable,
    Uploads,
    part_of,
)


class FedProtoConfig(FusionConfig):
    """Options of FedProto."""

    lambda_: float = Field(1.0, ge=0, alias="lambda", description="weight of the distance to the prototypes")
    exchange_weights: bool = Field(True, description="off: prototypes alone, as in the original")
    prototype_weights: Literal["uniform", "count"] = Field(
        "uniform", description="of clients in a prototype; count: their rows of the class"
    )
    min_count: int = Field(2, ge=1, description="rows that a local prototype needs; 1 may reveal a row")


@dataclass(frozen=True)
class FedProtoState(TaskModels):
    """What the server keeps; no models if weights are not exchanged.

    Attributes:
        prototypes: task number -> ``prototype.complete`` ``[C, heads * width]`` and ``prototype.known`` bool
            ``[C]``.
    """

    prototypes: ParameterTable


class FedProto(FusionFedAvg):
    """Class prototypes of z, with averaged weights or with models of the clients' own."""

    Config = FedProtoConfig

    def __init__(self, config: AlgorithmConfig | None = None) -> None:
        super().__init__(config)
        if not self.config.exchange_weights:
            self.personal = self.trained

    def setup(self, federation: Federation, generator: torch.Generator) -> FedProtoState:
        """FedAvg's start, every client's own if weights are not exchanged; no class has a prototype."""
        start = super().setup(federation, generator)
        models = [start.models[i] for i in range(len(federation.tasks))]
        own = ParameterTable.of_kinds(models, federation.clients.task_numbers)
        width = self.config.heads * self.config.width
        unknown = {
            number: {
                "prototype.complete": torch.zeros(task.num_classes, width),
                "prototype.known": torch.zeros(task.num_classes, dtype=torch.bool),
            }
            for number, task in enumerate(federation.tasks)
        }
        return FedProtoState(
            shared={},
            personal=own if self.personal else ParameterTable({}),
            models=ParameterTable({}) if self.personal else start.models,
            task=start.task,
            prototypes=ParameterTable(unknown),
        )

    def broadcast(self, state: FedProtoState, client: Client) -> ClientState:
        """Send the prototypes of the client's task, and the model unless it is the client's own."""
        model = state.personal[client.index] if self.personal else state.models[client.task_index]
        return {**model, **state.prototypes[client.task_index]}

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy and the distance to the prototypes."""
        del context
        z = self.embed(params, batch.inputs)
        labels = batch.labels.masked_fill(~batch.inputs.present.any(dim=1), -100)
        complete, known = params["prototype.complete"], params["prototype.known"]
        pull: float = self.config.lambda_
        logits = nn.two_layer(params, "head", z)
        return nn.cross_entropy(logits, batch.labels) + pull * prototype_regression(
            z, labels, complete, known
        )

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send the local prototypes, and the model unless it is the client's own."""
        means, counts = local_prototypes(lambda x: self.embed(params, x), client, self.config.min_count)
        model = {n: t for n, t in super().upload(params, client).items() if part_of(n) != "prototype"}
        return {**model, "prototype.local": means, "prototype.count": counts}

    def aggregate(self, state: FedProtoState, uploads: Uploads, weights: Tensor) -> FedProtoState:
        """Average the prototypes inside each task that took part, and the models as FedAvg does."""
        by_count = self.config.prototype_weights == "count"
        tasks = state.task[[c.index for c in uploads.clients]]
        prototypes: dict[int, ClientState] = {}
        for number in tasks.unique().tolist():
            sent = uploads.select((tasks == number).nonzero().flatten().tolist())
            counts = sent["prototype.count"]
            mean = mean_prototypes(sent["prototype.local"], counts, by_count=by_count)
            sent_by_any = (counts > 0).any(dim=0)
            last = state.prototypes[number]
            prototypes[number] = {
                "prototype.complete": torch.where(sent_by_any[:, None], mean, last["prototype.complete"]),
                "prototype.known": last["prototype.known"] | sent_by_any,
            }
        state = replace(state, prototypes=state.prototypes.replace(prototypes))
        if self.personal:
            return state
        models = [{n: t for n, t in row.items() if part_of(n) != "prototype"} for row in uploads.rows()]
        averaged: FedProtoState = super().aggregate(state, Uploads(uploads.clients, models), weights)
        return averaged

    def metrics(self, state: FedProtoState) -> dict[str, Any]:
        """Share of classes that have a prototype."""
        known = torch.cat([state.prototypes[i]["prototype.known"] for i in range(len(state.prototypes))])
        return {"prototype_share": float(known.double().mean())}
