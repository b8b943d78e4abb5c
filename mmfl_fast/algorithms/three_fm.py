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
lacks: with ``query: all`` on complete queries, with ``query: own`` on the missing ones. With one client that
holds everything and ``support_every: null`` as well it is the report's centralised baseline (papers.md 2.5),
the preset ``3fm-centralised-cpu``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.algorithms.branch_backbone import BranchAlgorithm, BranchConfig, absent
from mmfl_fast.algorithms.task_models import TaskModels
from mmfl_fast.federation import Adam, Batch, ClientState, Context, Inputs, Phase, Sgd, Uploads

_PRINTED = {"inner": "sgd", "inner_steps": 1, "server": "gradient", "local_epochs": 1}


class ThreeFMConfig(BranchConfig):
    """Options of 3FM; the defaults are those of the report's best runs, ``mode: notebook``."""

    mode: Literal["notebook", "printed"] = Field(
        "notebook", description="printed: inner sgd, inner_steps 1, server gradient, local_epochs 1"
    )
    support_every: int | None = Field(
        5, ge=2, description="one row in so many is support, the others are query; null: all are query"
    )
    query: Literal["all", "own"] = Field(
        "all", description="modalities of query sets: all that a client has, or those of its support sets"
    )
    inner: Literal["adam", "sgd"] = Field("adam", description="optimiser of the inner steps")
    inner_steps: int = Field(5, ge=0, description="0: no adaptation, the FedAvg controls")
    server: Literal["average", "gradient"] = Field(
        "average", description="average local weights, or move theta by the clients' g_u"
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="of g_u over clients; the printed one is sum"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_printed(cls, given: Any) -> Any:
        printed = isinstance(given, Mapping) and given.get("mode") == "printed"
        return {**_PRINTED, **given} if printed else given

    @model_validator(mode="after")
    def _adapts_to_something(self) -> ThreeFMConfig:
        if self.support_every is None and self.inner_steps:
            raise ValueError(f"inner_steps must be 0 without support_every; got {self.inner_steps}")
        return self


class ThreeFM(BranchAlgorithm):
    """One branch per modality, a head on all of them, and a start that adapts to those a client has."""

    Config = ThreeFMConfig

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

    def aggregate(self, state: TaskModels, uploads: Uploads, weights: Tensor) -> TaskModels:
        """Average each task's weights by data, or take the server's step on the mean query gradients."""
        if self.config.server == "average":
            averaged: TaskModels = super().aggregate(state, uploads, weights)
            return averaged
        tasks = [c.task_index for c in uploads.clients]
        members = {t: [p for p, own in enumerate(tasks) if own == t] for t in dict.fromkeys(tasks)}
        moved = {t: self._step(state.models[t], uploads.select(p)) for t, p in members.items()}
        return replace(state, models=state.models.replace(moved))

    def _step(self, theta: ClientState, uploads: Uploads) -> ClientState:
        """``theta - beta * reduction_u g_u``. A client's rate is 1: it sent theta less the sum of its g_u."""
        c = self.config
        count = 1 if c.reduction == "sum" else len(uploads)
        shares = [1 / (count * c.local_epochs * -(-u.num_train // c.batch_size)) for u in uploads.clients]
        matrix = torch.tensor([shares], dtype=torch.float64, device=next(iter(theta.values())).device)
        (sent,) = ops.mix(uploads.rows(), matrix)
        return {n: t - c.learning_rate * (sum(shares) * t - sent[n]) for n, t in theta.items()}

    def _sets(self, batch: Batch) -> tuple[Callable[[ClientState], Tensor], Callable[[ClientState], Tensor]]:
        """Cross-entropy on the support and on the query rows of a batch, as functions of the parameters."""
        every = self.config.support_every
        kept = nn.named(batch.inputs.values, self.config.support, batch.labels.device)
        rows = torch.arange(len(batch.labels), device=batch.labels.device)

        def on(chosen: Tensor, modalities: Tensor) -> Callable[[ClientState], Tensor]:
            present = batch.inputs.present[chosen] & modalities
            inputs = Inputs({name: x[chosen] for name, x in batch.inputs.values.items()}, present)
            labels, nobody_has = batch.labels[chosen], absent(inputs)
            return lambda params: nn.cross_entropy(self.logits(params, inputs, nobody_has), labels)

        everything = torch.ones_like(kept)
        of_query = kept if self.config.query == "own" else everything
        if every is None:
            # Without inner steps nobody asks for the support.
            query = on(rows, of_query)
            return query, query
        return on(rows[::every], kept), on(rows[rows % every != 0], of_query)
