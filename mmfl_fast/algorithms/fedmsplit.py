"""FedMSplit-style: correlation-adaptive federated multimodal learning (after FedMSplit, KDD 2022).

Client models are split into shareable blocks. Each type of block is one view of a graph of clients: its edges
are the attention between the owners' blocks, a cross-view factor joins the views, and messages along the
edges give every client an aggregate of each block, to which its training is pulled:

    A^o_kl = softmax_l(cos(Delta_k^o, Delta_l^o) / tau),  r_kl = sum_o A^o_kl / (1 + |Omega_k & Omega_l|)
    theta_k^o <- sum_l A^o_kl r_kl theta_l^o / sum_l A^o_kl r_kl
    L_k = CE + lambda sum_o ||theta_k^o - aggregate_k^o||^2

Blocks are the input layer of each modality, ``f``, ``T`` and ``psi``; clients share a block where its name
and shapes agree, ``psi`` moreover inside a task only, since a class number means nothing elsewhere. ``Omega``
is the set of modalities held. No author's code was found, hence "-style". A third party's takes the scalar
product of the weights themselves, whose softmax saturates on the client of the largest norm; we take the
cosine of ``Delta``, what a round's training changed, and a temperature (papers.md 5.7).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast.algorithms.client_graph import pass_messages, shared_blocks
from mmfl_fast.algorithms.client_pairs import in_order, no_clients, no_pairs
from mmfl_fast.algorithms.drift import squared_drift
from mmfl_fast.algorithms.plain_training import PlainTraining, PlainTrainingConfig
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import Batch, ClientState, Context, ParameterTable, State, Uploads, part_of


class FedMSplitConfig(PlainTrainingConfig):
    """Options of the FedMSplit-style baseline."""

    lambda_: float = Field(0.01, ge=0, alias="lambda", description="pull of every block to its aggregate")
    temperature: float = Field(0.1, gt=0, description="tau of the attention")


@dataclass(frozen=True)
class FedMSplitState(State):
    """What the server knows.

    Attributes:
        models: client index -> its aggregate of all blocks, which is its model.
        members: int64 ``[n]``, the clients of the last round, ascending.
        consensus: float64 ``[n, n]``, weights of its mix of ``f``.
    """

    models: ParameterTable
    members: Tensor
    consensus: Tensor


class FedMSplit(PlainTraining):
    """Every client has a model of its own, and every block of it is exchanged."""

    Config = FedMSplitConfig
    per_client = ("models",)

    def setup(self, federation: Federation, generator: torch.Generator) -> FedMSplitState:
        """Give every client its task's start."""
        models = self.initial_models(federation, generator)
        return FedMSplitState(
            shared={},
            personal=ParameterTable({}),
            models=ParameterTable.of_kinds(models, federation.clients.task_numbers),
            members=no_clients(),
            consensus=no_pairs(),
        )

    def broadcast(self, state: FedMSplitState, client: Client) -> ClientState:
        """Send the client's aggregate."""
        return state.models[client.index]

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy and the pull to the aggregate, which is what the client started from."""
        pull: float = self.config.lambda_
        return super().loss(params, batch, context) + pull * squared_drift(params, context.start)

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send the blocks that the client owns: no input layer of a modality that it does not hold."""
        foreign = {f"phi.{m}" for m in client.task.modalities if m not in client.modalities}
        return {name: tensor for name, tensor in params.items() if block_of(name) not in foreign}

    def aggregate(self, state: FedMSplitState, uploads: Uploads, weights: Tensor) -> FedMSplitState:
        """Pass messages in every view; the clients that were not drawn keep their model."""
        del weights
        clients, rows = uploads.clients, uploads.rows()
        starts = [state.models[c.index] for c in clients]
        views = shared_blocks(clients, rows, block_of, ("psi",))
        received, mixes = pass_messages(clients, rows, starts, views, self.config.temperature)
        (learner,) = (mixes[view] for view, (names, _) in views.items() if part_of(names[0]) == "f")
        members = torch.tensor([c.index for c in clients])
        models = {c.index: {**s, **r} for c, s, r in zip(clients, starts, received, strict=True)}
        return replace(
            state,
            models=state.models.replace(models),
            members=members.sort().values,
            consensus=in_order(learner, members),
        )

    def metrics(self, state: FedMSplitState) -> dict[str, Any]:
        """Mean weight a client gives its own ``f``."""
        return {"self_weight": float(state.consensus.diagonal().mean())}


def block_of(name: str) -> str:
    """The block of a parameter: its part, and of the input layers the modality."""
    return name.rpartition(".")[0] if part_of(name) == "phi" else part_of(name)
