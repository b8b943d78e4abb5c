"""3FM: Multi-modal Meta-learning for Federated Tasks (arXiv 2312.10179).

Clients lack modalities; MAML on each client is to make the shared start adapt to them. A meta-step draws a
support set, in which only some modalities are there, and a query set:

    theta_u = theta after inner steps on L_S,     g_u = grad_theta L_Q(theta_u)

``mode: notebook`` is what produced the report's numbers: five inner Adam steps, five local outer Adam steps
on g_u a round, and the server averages the weights by data. ``mode: printed`` is the algorithm as printed:
one inner SGD step, and the server moves theta by beta times the sum of all g_u; the mean by default, because
the printed sum grows with the number of clients. Every choice a mode makes is an option of its own.

The released network cuts its first linear layer to the width of the modalities that are there and exchanges
layers by names that collide. Here an absent modality is zeros of full width, and names are paths (papers.md
2.7, 2.8). The report's query sets are always complete; ``query: own`` asks the harder question, a client that
never sees the others. With ``inner_steps: 0`` it is FedAvg on the same data, the control that the report
lacks: with ``query: all`` on complete queries, with ``query: own`` on the missing ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.data import Federation
from mmfl_fast.federation import (
    Adam,
    Algorithm,
    AlgorithmConfig,
    Batch,
    ClientState,
    Context,
    Inputs,
    ParameterTable,
    Phase,
    Sgd,
    State,
    Uploads,
)

_PRINTED = {"inner": "sgd", "inner_steps": 1, "server": "gradient", "local_epochs": 1}


class ThreeFMConfig(AlgorithmConfig):
    """Options of 3FM; the defaults are those of the report's best runs, ``mode: notebook``."""

    mode: Literal["notebook", "printed"] = Field(
        "notebook", description="printed: inner sgd, inner_steps 1, server gradient, local_epochs 1"
    )
    support: tuple[str, ...] | None = Field(
        None, description="modalities that support sets have (a scenario); default: all that a client has"
    )
    support_every: int = Field(5, ge=2, description="one row in so many is support, the others are query")
    query: Literal["all", "own"] = Field(
        "all", description="modalities of query sets: all that a client has, or those of its support sets"
    )
    inner: Literal["adam", "sgd"] = Field("adam", description="optimiser of the inner steps")
    inner_steps: int = Field(5, ge=0, description="0: no adaptation, the FedAvg controls")
    inner_rate: float = Field(1e-5, gt=0, description="alpha, rate of the inner steps")
    order: Literal["second", "first"] = Field("second", description="first: FOMAML")
    server: Literal["average", "gradient"] = Field(
        "average", description="average local weights, or move theta by the clients' g_u"
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="of g_u over clients; the printed one is sum"
    )
    head_width: int = Field(128, ge=1, description="of the layer behind the branches")
    learning_rate: float = Field(1e-3, gt=0, description="beta, rate of the outer steps")
    batch_size: int = Field(2**31 - 1, ge=1, description="rows per meta-step; default: all of a client")
    local_epochs: int = Field(5, ge=1, description="passes over a client's rows per round")
    momentum: float = Field(0.0, ge=0, le=0, description="none: the outer optimiser is Adam")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, of the outer Adam")

    @model_validator(mode="before")
    @classmethod
    def _as_printed(cls, given: Any) -> Any:
        printed = isinstance(given, Mapping) and given.get("mode") == "printed"
        return {**_PRINTED, **given} if printed else given


class ThreeFM(Algorithm):
    """One branch per modality, a head on all of them, and a start that adapts to those a client has."""

    Config = ThreeFMConfig

    def setup(self, federation: Federation, generator: torch.Generator) -> State:
        """Draw the start.

        Raises:
            ValueError: the federation has several tasks, or ``support`` names a modality it does not have.
        """
        if len(federation.tasks) > 1:
            names = ", ".join(task.name for task in federation.tasks)
            raise ValueError(f"3fm trains one task, because its head reads all modalities; got {names}")
        (task,) = federation.tasks
        for name in self.config.support or ():
            if name not in task.inputs:
                raise ValueError(f"support: expected some of {', '.join(task.inputs)}; got {name!r}")
        shapes = {name: x.shape[1:] for name, x in task.inputs.items()}
        return State(self._start(shapes, task.num_classes, generator), ParameterTable({}))

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """``head(relu(join([branch_m(x_m) or 0])))``: logits ``[B, C]``."""
        features = []
        for m, (name, x) in enumerate(inputs.values.items()):
            own = nn.picture_branch(params, f"branch.{name}", x) if x.dim() > 2 else x
            features.append(torch.where(inputs.present[:, m : m + 1], own, 0.0))
        return nn.two_layer(params, "head", torch.cat(features, dim=1))

    def client_phases(self) -> list[Phase]:
        """Passes of meta-steps; where the server steps, they sum the gradients at the broadcast theta."""
        c = self.config
        outer = Adam(c.learning_rate, weight_decay=c.weight_decay) if c.server == "average" else Sgd(1.0)
        return [Phase("meta", self.loss, ("*",), outer, c.batch_size)] * int(c.local_epochs)

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """``L_Q(theta_u)``; its gradient is ``g_u``."""
        c = self.config
        if c.server == "gradient":
            params = {name: context.start[name] + (t - t.detach()) for name, t in params.items()}
        support, query = self._sets(batch)
        second = c.order == "second"
        if c.inner == "adam":
            adapted = nn.inner_adam(support, params, c.inner_rate, c.inner_steps, second_order=second)
        else:
            adapted = params
            for _ in range(c.inner_steps):
                adapted = nn.inner_step(support, adapted, c.inner_rate, second_order=second)
        return query(adapted)

    def aggregate(self, state: State, uploads: Uploads, weights: Tensor) -> State:
        """Average the weights by data, or take the server's step on the clients' mean query gradients."""
        c = self.config
        if c.server == "average":
            return super().aggregate(state, uploads, weights)
        # A client's rate is 1, so what it sent is theta less the sum of its gradients.
        steps = [c.local_epochs * -(-client.num_train // c.batch_size) for client in uploads.clients]
        share = 1.0 / (1 if c.reduction == "sum" else len(uploads))
        matrix = torch.tensor([[share / s for s in steps]], dtype=torch.float64, device=weights.device)
        (sent,) = ops.mix(uploads.rows(), matrix)
        kept = float(matrix.sum())
        return replace(
            state,
            shared={n: t - c.learning_rate * (kept * t - sent[n]) for n, t in state.shared.items()},
        )

    def _start(
        self, shapes: Mapping[str, torch.Size], classes: int, generator: torch.Generator
    ) -> ClientState:
        params: ClientState = {}
        width = 0
        for name, shape in shapes.items():
            if len(shape) > 1:
                params |= nn.init_picture_branch(f"branch.{name}", shape, generator)
            width += nn.picture_features(shape) if len(shape) > 1 else shape.numel()
        return {**params, **nn.init_two_layer("head", width, self.config.head_width, classes, generator)}

    def _sets(self, batch: Batch) -> tuple[Callable[[ClientState], Tensor], Callable[[ClientState], Tensor]]:
        """Cross-entropy on the support and on the query rows of a batch, as functions of the parameters."""
        every = self.config.support_every
        kept = torch.tensor(
            [self.config.support is None or name in self.config.support for name in batch.inputs.values],
            device=batch.labels.device,
        )
        rows = torch.arange(len(batch.labels), device=batch.labels.device)

        def on(chosen: Tensor, modalities: Tensor) -> Callable[[ClientState], Tensor]:
            present = batch.inputs.present[chosen] & modalities
            inputs = Inputs({name: x[chosen] for name, x in batch.inputs.values.items()}, present)
            labels = batch.labels[chosen]
            return lambda params: nn.cross_entropy(self.predict(params, inputs), labels)

        everything = torch.ones_like(kept)
        support = on(rows[::every], kept)
        return support, on(rows[rows % every != 0], kept if self.config.query == "own" else everything)
