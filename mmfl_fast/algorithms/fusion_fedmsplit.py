"""FedMSplit-style on the fusion model: the equations of :mod:`mmfl_fast.algorithms.fedmsplit`, other blocks.

Blocks are the encoder of each modality, ``fusion`` and ``head``. Clients share a block where its name and
shapes agree, ``head`` moreover inside a task only. A client sends no encoder of a modality that it does not
hold, and FedMSplit has no edge along which to get one. Tests may have the modality nevertheless, so a client
that is drawn gets the data-weighted mean of the encoders that the owners in its task sent: our addition,
without which it would classify with an encoder that nobody trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.algorithms.client_graph import pass_messages, shared_blocks
from mmfl_fast.algorithms.client_pairs import in_order, no_clients, no_pairs
from mmfl_fast.algorithms.drift import squared_drift
from mmfl_fast.algorithms.encoders_held import encoder_of, without_foreign_encoders
from mmfl_fast.algorithms.fedmsplit import FedMSplitState
from mmfl_fast.algorithms.fusion_backbone import FusionAlgorithm, FusionConfig
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import Batch, ClientState, Context, ParameterTable, Uploads, part_of


class FusionFedMSplitConfig(FusionConfig):
    """Options of the FedMSplit-style baseline."""

    lambda_: float = Field(0.01, ge=0, alias="lambda", description="pull of every block to its aggregate")
    temperature: float = Field(0.1, gt=0, description="tau of the attention")


class FusionFedMSplit(FusionAlgorithm):
    """Every client has a model of its own, and every block that it owns is exchanged."""

    Config = FusionFedMSplitConfig
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
        """Send the blocks that the client owns."""
        return without_foreign_encoders(params, client)

    def aggregate(self, state: FedMSplitState, uploads: Uploads, weights: Tensor) -> FedMSplitState:
        """Pass messages in every view; the clients that were not drawn keep their model."""
        clients, rows = uploads.clients, uploads.rows()
        starts = [state.models[c.index] for c in clients]
        views = shared_blocks(clients, rows, _block_of(clients), ("head",))
        received, mixes = pass_messages(clients, rows, starts, views, self.config.temperature)
        (fusion,) = (mixes[view] for view, (names, _) in views.items() if part_of(names[0]) == "fusion")
        members = torch.tensor([c.index for c in clients])
        lacking = _encoders_lacking(uploads, weights)
        models = {
            c.index: {**start, **own, **others}
            for c, start, own, others in zip(clients, starts, received, lacking, strict=True)
        }
        return replace(
            state,
            models=state.models.replace(models),
            members=members.sort().values,
            consensus=in_order(fusion, members),
        )

    def metrics(self, state: FedMSplitState) -> dict[str, Any]:
        """Mean weight a client gives its own ``fusion``."""
        return {"self_weight": float(state.consensus.diagonal().mean())}


def _block_of(clients: Sequence[Client]) -> Callable[[str], str]:
    modalities = {m for c in clients for m in c.task.modalities}

    def block_of(name: str) -> str:
        encoders = (f"encoder.{m}" for m in modalities)
        return next((block for block in encoders if name.startswith(f"{block}.")), part_of(name))

    return block_of


def _encoders_lacking(uploads: Uploads, weights: Tensor) -> list[ClientState]:
    """For each client the mean encoders of the modalities that it lacks, where its task has owners."""
    clients, rows = uploads.clients, uploads.rows()
    means: dict[tuple[int, str], ClientState] = {}
    for task, modality in {(c.task_index, m) for c in clients for m in c.modalities}:
        owners = [k for k, c in enumerate(clients) if c.task_index == task and modality in c.modalities]
        encoders = [encoder_of(rows[k], modality) for k in owners]
        means[task, modality] = ops.weighted_mean(encoders, weights[owners])
    lacking: list[ClientState] = []
    for client in clients:
        absent = [m for m in client.task.modalities if m not in client.modalities]
        found = [means.get((client.task_index, m), {}) for m in absent]
        lacking.append({n: t for encoder in found for n, t in encoder.items()})
    return lacking
