"""M3Fed: Cross-Modal Meta Consensus for Heterogeneous Federated Learning (ACM MM 2024).

Uni-modal clients with modalities and tasks of their own learn one feature learner ``f``. Each keeps a
personal operator ``T`` into a common low-rank space and exchanges a consensus operator ``G``. The server
clusters the clients by the direction of their update of ``f`` (Eq. 5 and 6), averages ``f`` inside each
cluster, and mixes the ``G`` by their distance (Eq. 7). papers.md 1.8 lists the paper's errors and 1.10 how
they are resolved here.

Eq. 5 compares models. From the second round on, those of one cluster share a start and those of two do not,
so what set the clusters apart first keeps them apart; ``compared: updates`` compares what the round changed.

Eq. 5 takes K^2 P products and the spectral clustering K^3. For thousands of clients ``sketch`` shortens the
rows at a known error and ``landmarks`` compares every client with a few; ``mmfl-fast bench server`` shows
what both cost and how far they are off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.algorithms.backbone import BackboneAlgorithm, BackboneConfig, split_learner
from mmfl_fast.algorithms.batch_parts import interleaved
from mmfl_fast.algorithms.client_pairs import among_all, in_order, no_clients, no_pairs
from mmfl_fast.algorithms.clusters import spectral_clusters
from mmfl_fast.algorithms.landmark_clusters import landmark_clusters
from mmfl_fast.algorithms.learner_affinity import learner_affinity, learner_sketches, updates
from mmfl_fast.algorithms.true_modalities import adjusted_rand_index, modality_numbers
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import Batch, ClientState, Context, ParameterTable, Phase, State, Uploads


class M3FedConfig(BackboneConfig):
    """Options of M3Fed; the defaults are the paper's (section 4.2) with the resolutions of papers.md 1.10."""

    lambda_: float = Field(0.6, ge=0, alias="lambda", description="pull between T and G")
    clusters: Annotated[int, Field(ge=1)] | Literal["eigengap"] = Field(
        4, description="mu, number of update-direction clusters; eigengap: chosen in every round"
    )
    clustering: Literal["spectral", "none"] = Field(
        "spectral", description="none: one cluster, plain average of f (Table 4, without clustering)"
    )
    similarity: Literal["pearson", "cosine"] = Field("pearson", description="sigma of Eq. 5")
    compared: Literal["models", "updates"] = Field(
        "models", description="of f in Eq. 5; updates: less what each client started the round from"
    )
    layerwise: bool = Field(False, description="mean of the similarities of f's layers instead of all of f")
    sketch: int | None = Field(
        None,
        ge=1,
        description="columns of a random sketch of f in Eq. 5, for thousands of clients; null: exact",
    )
    landmarks: int | None = Field(
        None, ge=2, description="clients that the clustering compares all others with; null: every pair"
    )
    cluster_weights: Literal["uniform", "data"] = Field("uniform", description="of f inside a cluster")
    mixing: Literal["consensus", "none"] = Field(
        "consensus", description="none: every client keeps its G (Table 4, without collaboration matrix)"
    )
    consensus_scale: Literal["median"] | Annotated[float, Field(gt=0)] = Field(
        "median", description="s of exp(-rho2 / s); 1.0 is the literal Eq. 7, which underflows"
    )
    retraction: Literal["none", "qr"] = Field("none", description="orthonormalise T and G after each pass")
    meta_gradient: Literal["alternating", "first-order", "hessian-free"] = Field(
        "alternating", description="of the global pass: Eq. 4, or Per-FedAvg's through a step of f (Eq. 1)"
    )

    @model_validator(mode="after")
    def _landmarks_have_sketches(self) -> M3FedConfig:
        if self.landmarks is None:
            return self
        if self.sketch is None:
            raise ValueError("landmarks compares sketches: set sketch as well, as in sketch=4096")
        for name, needed in (("layerwise", False), ("clustering", "spectral")):
            if getattr(self, name) != needed:
                raise ValueError(f"landmarks takes {name}={needed}; got {getattr(self, name)!r}")
        if self.clusters == "eigengap":
            raise ValueError("landmarks takes a number of clusters; eigengap needs every pair")
        return self


@dataclass(frozen=True)
class M3FedState(State):
    """What the server knows; K is the number of clients of the federation.

    Attributes:
        slot: int64 ``[K]``; client i starts from row ``slot[i]`` of ``shared``, which stacks the distinct
            feature learners ``[R, ...]``: of the last round, and of those before it each that a client would
            still start from.
        operators: client index -> its consensus operator ``G``, ``[m, n]``; no rows without projection.
        clusters: int64 ``[K]``, cluster of the last round each client took part in, -1 before.
        modalities: int64 ``[K]``, which set of modalities a client holds; only for the metrics.
        members: int64 ``[n]``, the clients of the last round, ascending.
        affinity: float64 ``[n, n]``, their angular similarity; empty with ``landmarks``.
        consensus: float64 ``[n, n]``, Eq. 7 of the last round; empty without projection.
    """

    slot: Tensor
    operators: ParameterTable
    clusters: Tensor
    modalities: Tensor
    members: Tensor
    affinity: Tensor
    consensus: Tensor


class M3Fed(BackboneAlgorithm):
    """The paper's algorithm with a switch for every ablation of its Table 4."""

    Config = M3FedConfig
    personal = ("phi", "T", "psi")
    per_client = ("operators",)

    def setup(self, federation: Federation, generator: torch.Generator) -> M3FedState:
        """All ``f``, ``T`` and ``G`` start equal: otherwise Eq. 7 is degenerate from the first round."""
        models = self.initial_models(federation, generator)
        count = len(federation.clients)
        learner, own = split_learner(federation, models)
        operators = ParameterTable({})
        if self.config.projection:
            operators = ParameterTable.of_kinds([{"G": models[0]["T"].clone()}], torch.zeros(count))
        return M3FedState(
            shared={n: t.unsqueeze(0) for n, t in learner.items()},
            personal=own,
            slot=torch.zeros(count, dtype=torch.int64),
            operators=operators,
            clusters=torch.full((count,), -1),
            modalities=modality_numbers(federation),
            members=no_clients(),
            affinity=no_pairs(),
            consensus=no_pairs(),
        )

    def broadcast(self, state: M3FedState, client: Client) -> ClientState:
        """Send the cluster's ``f`` and the client's ``G``; the rest is its own."""
        slot = int(state.slot[client.index])
        learner = {n: t[slot] for n, t in state.shared.items()}
        return learner | state.personal[client.index] | state.operators.get(client.index)

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Eq. 3 and Eq. 4: cross-entropy and ``lambda/2 ||T - G||_F^2``; the passes differ in what moves."""
        value = super().loss(params, batch, context)
        if self.config.projection:
            value = value + 0.5 * self.config.lambda_ * (params["T"] - params["G"]).square().sum()
        return value

    def client_phases(self) -> list[Phase]:
        """Per local epoch a personal pass (Eq. 3), then a global one (Eq. 4) with ``T`` and ``psi`` fixed."""
        c = self.config
        operators = ("T", "G") if c.projection else ()
        personal = Phase(
            "personal",
            self.loss,
            ("phi", "psi", *operators[:1]),
            self.sgd(c.learning_rate),
            c.batch_size,
            after=self._retract(operators[:1]),
        )
        shared = Phase(
            "global",
            self.loss if c.meta_gradient == "alternating" else self._adapted_loss,
            ("f", *operators[1:]),
            self.sgd(c.global_learning_rate),
            c.batch_size,
            after=self._retract(operators[1:]),
        )
        return [personal, shared] * c.local_epochs

    def aggregate(self, state: M3FedState, uploads: Uploads, weights: Tensor) -> M3FedState:
        """Cluster and average ``f``; mix the ``G``."""
        members = torch.tensor([c.index for c in uploads.clients])
        state = replace(state, members=members.sort().values)
        state = self._aggregate_learners(state, uploads, weights, members)
        return self._mix_operators(state, uploads, weights, members) if self.config.projection else state

    def metrics(self, state: M3FedState) -> dict[str, Any]:
        """Clusters, their agreement with the modalities, and the round's mean ``||T - G||_F``: G moves."""
        values: dict[str, Any] = {
            "clusters": state.clusters.tolist(),
            "adjusted_rand_index": adjusted_rand_index(state.clusters, state.modalities),
        }
        if self.config.projection and len(state.members):
            members = state.members.tolist()
            own = torch.stack([state.personal[i]["T"] for i in members])
            shared = torch.stack([state.operators[i]["G"] for i in members])
            values["operator_gap"] = float((own - shared).flatten(1).norm(dim=1).mean())
        return values

    def similarity(self, state: M3FedState) -> Tensor | None:
        """Angular similarity of the updates, Eq. 6."""
        if self.config.landmarks is not None:
            return None
        return among_all(state.affinity, state.members, len(state.slot))

    def _aggregate_learners(
        self, state: M3FedState, uploads: Uploads, weights: Tensor, members: Tensor
    ) -> M3FedState:
        c = self.config
        learners = uploads.rows("f")
        compared = learners
        if c.compared == "updates":
            starts = [{n: t[slot] for n, t in state.shared.items()} for slot in state.slot[members].tolist()]
            compared = updates(learners, starts)
        affinity, labels = self._cluster(compared)
        share = torch.ones_like(weights) if c.cluster_weights == "uniform" else weights
        belongs = torch.nn.functional.one_hot(labels).T.to(share) * share
        means = ops.mix(learners, belongs / belongs.sum(dim=1, keepdim=True))

        absent = torch.ones(len(state.slot), dtype=torch.bool)
        absent[members] = False
        needed = torch.zeros(len(next(iter(state.shared.values()))), dtype=torch.bool)
        needed[state.slot[absent]] = True
        kept = needed.nonzero().flatten()
        # Behind the new means, in their order.
        slot = (needed.cumsum(dim=0) - 1 + len(means))[state.slot]
        slot[members] = labels
        clusters = state.clusters.clone()
        clusters[members] = labels
        return replace(
            state,
            shared={
                n: torch.cat([torch.stack([m[n] for m in means]), t[kept]]) for n, t in state.shared.items()
            },
            slot=slot,
            clusters=clusters,
            affinity=state.affinity if affinity is None else in_order(affinity, members),
        )

    def _cluster(self, compared: Sequence[ClientState]) -> tuple[Tensor | None, Tensor]:
        """Affinity of all pairs, or None with landmarks, and cluster of every learner."""
        c = self.config
        if c.landmarks and c.sketch:
            sketches = learner_sketches(compared, c.similarity, c.sketch)
            return None, landmark_clusters(sketches, int(c.clusters), c.landmarks)
        affinity = learner_affinity(compared, c.similarity, layerwise=c.layerwise, sketched=c.sketch)
        return affinity, spectral_clusters(affinity, c.clusters if c.clustering == "spectral" else 1)

    def _mix_operators(
        self, state: M3FedState, uploads: Uploads, weights: Tensor, members: Tensor
    ) -> M3FedState:
        uploaded = uploads["G"]
        matrix = torch.eye(len(members), dtype=torch.float64)
        if self.config.mixing == "consensus":
            matrix = ops.consensus_matrix(uploaded, weights, scale=self.config.consensus_scale)
            uploaded = ops.consensus_mix(uploaded, matrix)
        mixed = {i: {"G": g} for i, g in zip(members.tolist(), uploaded, strict=True)}
        return replace(state, operators=state.operators.replace(mixed), consensus=in_order(matrix, members))

    def _retract(self, names: tuple[str, ...]) -> Callable[[ClientState], ClientState] | None:
        if self.config.retraction == "none":
            return None
        return lambda params: {**params, **{n: nn.retract_rows(params[n]) for n in names}}

    def _adapted_loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        moving = {n: t for n, t in params.items() if n.startswith("f.")}
        fixed = {n: t for n, t in params.items() if not n.startswith("f.")}

        def on(half: Batch) -> Callable[[ClientState], Tensor]:
            return lambda f: self.loss({**fixed, **f}, half, context)

        support, query = interleaved(batch, 2)
        return nn.adapted_loss(
            on(support),
            on(query),
            moving,
            self.config.global_learning_rate,
            hessian_free=self.config.meta_gradient == "hessian-free",
        )
