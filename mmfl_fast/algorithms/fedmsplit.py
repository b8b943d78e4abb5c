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

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.algorithms.client_pairs import known_pairs, unknown_pairs
from mmfl_fast.algorithms.plain_training import PlainTraining, PlainTrainingConfig
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import Batch, ClientState, Context, ParameterTable, State, Uploads, part_of


class FedMSplitConfig(PlainTrainingConfig):
    """Options of the FedMSplit-style baseline."""

    lambda_: float = Field(0.01, ge=0, alias="lambda", description="pull of every block to its aggregate")
    temperature: float = Field(0.1, gt=0, description="tau of the attention")


@dataclass(frozen=True)
class FedMSplitState(State):
    """What the server knows; K is the number of clients of the federation.

    Attributes:
        models: client index -> its aggregate of all blocks, which is its model.
        consensus: float64 ``[K, K]``, weights of the last round's mix of ``f``; NaN for who was not drawn.
    """

    models: ParameterTable
    consensus: Tensor


class FedMSplit(PlainTraining):
    """Every client has a model of its own, and every block of it is exchanged."""

    Config = FedMSplitConfig

    def setup(self, federation: Federation, generator: torch.Generator) -> FedMSplitState:
        """Give every client its task's start."""
        models = self.initial_models(federation, generator)
        return FedMSplitState(
            shared={},
            personal=ParameterTable({}),
            models=ParameterTable({c.index: models[c.task_index] for c in federation.clients}),
            consensus=unknown_pairs(len(federation.clients)),
        )

    def broadcast(self, state: FedMSplitState, client: Client) -> ClientState:
        """Send the client's aggregate."""
        return state.models[client.index]

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy and the pull to the aggregate, which is what the client started from."""
        drift = [(tensor - context.start[name]).square().sum() for name, tensor in params.items()]
        pull: float = self.config.lambda_
        return super().loss(params, batch, context) + pull * torch.stack(drift).sum()

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send the blocks that the client owns: no input layer of a modality that it does not hold."""
        foreign = {f"phi.{m}" for m in client.task.modalities if m not in client.modalities}
        return {name: tensor for name, tensor in params.items() if block_of(name) not in foreign}

    def aggregate(self, state: FedMSplitState, uploads: Uploads, weights: Tensor) -> FedMSplitState:
        """Pass messages in every view; the clients that were not drawn keep their model."""
        clients, rows = uploads.clients, uploads.rows()
        views = shared_blocks(clients, rows)
        attention = {
            view: block_attention(
                [{n: rows[k][n] - state.models[clients[k].index][n] for n in names} for k in owners],
                self.config.temperature,
            )
            for view, (names, owners) in views.items()
        }
        factor = weights.new_zeros(len(rows), len(rows))
        for view, (_, owners) in views.items():
            factor[torch.tensor(owners).unsqueeze(1), owners] += attention[view]
        factor /= 1 + common_modalities(clients).to(factor)

        models = {c.index: dict(state.models[c.index]) for c in clients}
        consensus = state.consensus
        for view, (names, owners) in views.items():
            matrix = attention[view] * factor[torch.tensor(owners).unsqueeze(1), owners]
            matrix = matrix / matrix.sum(dim=1, keepdim=True)
            mixed = ops.mix([{n: rows[k][n] for n in names} for k in owners], matrix)
            for k, block in zip(owners, mixed, strict=True):
                models[clients[k].index].update(block)
            if part_of(names[0]) == "f":
                members = torch.tensor([c.index for c in clients])
                consensus = known_pairs(matrix, members, len(consensus))
        return replace(state, models=state.models.replace(models), consensus=consensus)

    def metrics(self, state: FedMSplitState) -> dict[str, Any]:
        """Mean weight a client gives its own ``f``."""
        return {"self_weight": float(state.consensus.diagonal().nanmean())}


def block_of(name: str) -> str:
    """The block of a parameter: its part, and of the input layers the modality."""
    return name.rpartition(".")[0] if part_of(name) == "phi" else part_of(name)


def shared_blocks(
    clients: tuple[Client, ...], rows: list[dict[str, Tensor]]
) -> dict[Hashable, tuple[list[str], list[int]]]:
    """Find the views: parameter names of a block, and the positions of the clients that share it."""
    views: dict[Hashable, tuple[list[str], list[int]]] = {}
    for position, (client, row) in enumerate(zip(clients, rows, strict=True)):
        blocks: dict[str, list[str]] = {}
        for name in row:
            blocks.setdefault(block_of(name), []).append(name)
        for block, names in blocks.items():
            task = client.task_index if block == "psi" else None
            shapes = tuple((n, row[n].shape) for n in names)
            views.setdefault((task, shapes), (names, []))[1].append(position)
    return views


def block_attention(updates: list[dict[str, Tensor]], temperature: float) -> Tensor:
    """``softmax_l(cos(Delta_k, Delta_l) / tau)`` of K updates of one block, float64 ``[K, K]``."""
    return torch.softmax(ops.cosine_similarity(updates, origin=None) / temperature, dim=1)


def common_modalities(clients: tuple[Client, ...]) -> Tensor:
    """``|Omega_k & Omega_l|``, int64 ``[K, K]``."""
    held = [set(c.modalities) for c in clients]
    return torch.tensor([[len(a & b) for b in held] for a in held])
