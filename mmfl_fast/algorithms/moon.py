"""MOON: Model-Contrastive Federated Learning (CVPR 2021, arXiv 2103.16257), on the fusion model.

A client's representation is drawn to that of the model it was sent and away from that of the model it made
when it last took part:

    r = g(z),  s_+ = cos(r, r_global) / tau,  s_- = cos(r, r_previous) / tau
    L = CE + mu mean_rows -log( exp(s_+) / (exp(s_+) + exp(s_-)) )

``g`` is the projection head. In the paper the classifier reads ``r``; here it reads ``z``, as it does in all
methods compared, and ``g`` is trained by the contrast alone. A client that takes part for the first time has
no previous model, and its loss no contrast. A client that is not drawn keeps its previous model. ``mu`` is to
be chosen from {0.1, 1, 5, 10} (papers.md 6.7).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn
from mmfl_fast.algorithms.fusion_backbone import FusionConfig
from mmfl_fast.algorithms.fusion_fedavg import FusionFedAvg
from mmfl_fast.algorithms.own_copy import own_copy
from mmfl_fast.algorithms.previous_model import PERSONAL, no_previous_model, with_previous_model
from mmfl_fast.algorithms.task_models import TaskModels
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import (
    Batch,
    ClientState,
    Context,
    Inputs,
    ParameterTable,
    Phase,
)

_REPRESENTED = ("encoder", "fusion", "projection")


class MOONConfig(FusionConfig):
    """Options of MOON."""

    mu: float = Field(1.0, ge=0, description="weight of the contrast; 0 is FedAvg")
    temperature: float = Field(0.5, gt=0, description="tau")
    projection_width: int = Field(256, ge=1, description="width of g's layer and of its output")


class MOON(FusionFedAvg):
    """FedAvg with a contrast between models; a client's previous model stays with it."""

    Config = MOONConfig
    personal = PERSONAL
    trained = (*FusionFedAvg.trained, "projection")

    def initial_models(self, federation: Federation, generator: torch.Generator) -> list[ClientState]:
        """The common start, with a projection head drawn behind it."""
        c = self.config
        return [
            {
                **model,
                **nn.init_two_layer(
                    "projection", c.heads * c.width, c.projection_width, c.projection_width, generator
                ),
            }
            for model in super().initial_models(federation, generator)
        ]

    def setup(self, federation: Federation, generator: torch.Generator) -> TaskModels:
        """FedAvg's start; room for a previous model that nobody has yet."""
        start: TaskModels = super().setup(federation, generator)
        none = [no_previous_model(start.models[i], _REPRESENTED) for i in range(len(federation.tasks))]
        return replace(start, personal=ParameterTable.of_kinds(none, federation.clients.task_numbers))

    def broadcast(self, state: TaskModels, client: Client) -> ClientState:
        """Send the model; the previous one is the client's own."""
        return {**super().broadcast(state, client), **state.personal[client.index]}

    def client_phases(self) -> list[Phase]:
        """FedAvg's; behind the last pass its result becomes the previous model."""
        *passes, last = super().client_phases()
        return [*passes, replace(last, after=lambda params: with_previous_model(params, _REPRESENTED))]

    def represent(self, params: ClientState, inputs: Inputs) -> Tensor:
        """``g(z)``: ``[B, projection_width]``."""
        return nn.two_layer(params, "projection", self.embed(params, inputs))

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy and the contrast between models."""
        z = self.embed(params, batch.inputs)
        contrast = model_contrast(
            nn.two_layer(params, "projection", z),
            self.represent(context.start, batch.inputs),
            self.represent(own_copy(params), batch.inputs),
            batch.labels != -100,
            self.config.temperature,
        )
        mu: float = self.config.mu
        logits = nn.two_layer(params, "head", z)
        return nn.cross_entropy(logits, batch.labels) + mu * params["previous.exists"] * contrast


def model_contrast(
    own: Tensor, common: Tensor, previous: Tensor, counted: Tensor, temperature: float
) -> Tensor:
    """Mean over the counted rows of ``-log(exp(s_+) / (exp(s_+) + exp(s_-)))``, 0 if there is none.

    Args:
        own: ``[B, D]``, representations that are trained.
        common: ``[B, D]``, of the global model, the positives.
        previous: ``[B, D]``, of the client's previous model, the negatives.
        counted: bool ``[B]``.
        temperature: tau.
    """
    unit = nn.unit_rows(own)
    positive, negative = ((unit * nn.unit_rows(r)).sum(dim=1) / temperature for r in (common, previous))
    losses = F.softplus(negative - positive)
    return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp(min=1)
