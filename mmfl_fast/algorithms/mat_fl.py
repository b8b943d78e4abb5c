"""MaT-FL: Many-Task Federated Learning (CVPR workshops 2023).

Clients train a backbone and a decoder of their own; the server mixes each client's backbone with those whose
update points the same way. With ``Delta_i = theta_i - mean_j theta_j`` over the whole backbone:

    soft:  s_ij = max(0, cos(Delta_i, Delta_j) + th), rows normalised,  theta_i <- sum_j s_ij theta_j
    hard:  agglomerative clusters (cosine, average linkage), theta_i <- mean of i's cluster

It is the nearest relative of M3Fed's clustering: the same ``Delta`` and another grouping. Here ``theta`` is
``f``; ``phi``, ``T`` and ``psi`` are the client's own. Clients train as all baselines of M3Fed do, not with
the authors' Adam, so that only the server differs. The abstract speaks of layers, the released code compares
the whole vector: we do as the code. It leaves ``th`` to the user; 0 is our default (papers.md 5.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.algorithms.backbone import split_learner
from mmfl_fast.algorithms.client_pairs import among_all, in_order, no_clients, no_pairs
from mmfl_fast.algorithms.clusters import agglomerative_clusters
from mmfl_fast.algorithms.plain_training import PlainTraining, PlainTrainingConfig
from mmfl_fast.algorithms.true_modalities import adjusted_rand_index, modality_numbers
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import ClientState, ParameterTable, State, Uploads


class MaTFLConfig(PlainTrainingConfig):
    """Options of MaT-FL."""

    grouping: Literal["soft", "hard"] = Field("soft", description="weights by similarity, or clusters")
    threshold: float = Field(0.0, gt=-1, le=1, description="th, added to the cosine; soft grouping")
    clusters: int = Field(4, ge=1, description="number of clusters; hard grouping")


@dataclass(frozen=True)
class MaTFLState(State):
    """What the server knows; K is the number of clients of the federation.

    Attributes:
        learners: client index -> its own mix of the feature learners.
        clusters: int64 ``[K]``, cluster of the last round each client took part in; -1 before, and always
            with soft grouping.
        modalities: int64 ``[K]``, which set of modalities a client holds; only for the metrics.
        members: int64 ``[n]``, the clients of the last round, ascending.
        affinity: float64 ``[n, n]``, their angular similarity.
        consensus: float64 ``[n, n]``, weights of their mix.
    """

    learners: ParameterTable
    clusters: Tensor
    modalities: Tensor
    members: Tensor
    affinity: Tensor
    consensus: Tensor


class MaTFL(PlainTraining):
    """One ``f`` per client, mixed by the similarity of updates."""

    Config = MaTFLConfig
    personal = ("phi", "T", "psi")
    per_client = ("learners",)

    def setup(self, federation: Federation, generator: torch.Generator) -> MaTFLState:
        """All ``f`` start equal."""
        learner, own = split_learner(federation, self.initial_models(federation, generator))
        count = len(federation.clients)
        return MaTFLState(
            shared={},
            personal=own,
            learners=ParameterTable.of_kinds([learner], torch.zeros(count)),
            clusters=torch.full((count,), -1),
            modalities=modality_numbers(federation),
            members=no_clients(),
            affinity=no_pairs(),
            consensus=no_pairs(),
        )

    def broadcast(self, state: MaTFLState, client: Client) -> ClientState:
        """Send the client's mix; the rest is its own."""
        return state.learners[client.index] | state.personal[client.index]

    def aggregate(self, state: MaTFLState, uploads: Uploads, weights: Tensor) -> MaTFLState:
        """Mix the ``f`` of those that took part; the others keep theirs."""
        del weights
        members = torch.tensor([c.index for c in uploads.clients])
        learners = uploads.rows("f")
        similarity = ops.cosine_similarity(learners, origin="mean")
        clusters = state.clusters.clone()
        if self.config.grouping == "hard":
            labels = agglomerative_clusters(similarity, self.config.clusters)
            clusters[members] = labels
            matrix = (labels[:, None] == labels).to(similarity)
        else:
            matrix = (similarity + self.config.threshold).clamp(min=0)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
        mixed = dict(zip(members.tolist(), ops.mix(learners, matrix), strict=True))
        return replace(
            state,
            learners=state.learners.replace(mixed),
            clusters=clusters,
            members=members.sort().values,
            affinity=in_order(1 - similarity.arccos() / math.pi, members),
            consensus=in_order(matrix, members),
        )

    def metrics(self, state: MaTFLState) -> dict[str, Any]:
        """Clusters and their agreement with the modalities, or the mean weight a client gives itself."""
        if self.config.grouping == "hard":
            return {
                "clusters": state.clusters.tolist(),
                "adjusted_rand_index": adjusted_rand_index(state.clusters, state.modalities),
            }
        return {"self_weight": float(state.consensus.diagonal().mean())}

    def similarity(self, state: MaTFLState) -> Tensor:
        """Angular similarity of the updates."""
        return among_all(state.affinity, state.members, len(state.clusters))
