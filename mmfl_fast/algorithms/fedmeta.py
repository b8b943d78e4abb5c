"""FedMeta: Federated Meta-Learning with Fast Convergence and Efficient Communication (Chen et al. 2018).

The server shares a meta-learner; clients adapt it on a support set and return the gradient of the query loss
with respect to what they *received*; the server steps on the mean of these gradients:

    MAML:      theta_i = theta - alpha grad L_S(theta),      g_i = grad_theta L_Q(theta_i)
    Meta-SGD:  theta_i = theta - alpha o grad L_S(theta),    g_i = grad_(theta, alpha) L_Q(theta_i)
    server:    theta <- theta - beta mean_i g_i;  Meta-SGD: alpha likewise

Meta-SGD learns a rate per parameter. Gradients go through the inner step, second order; ``order: first``
takes the gradient in that step for a constant. Here ``theta`` is ``f``; ``phi``, ``T`` and ``psi`` are the
client's own. Support and query are the two halves of a batch.

What tells it from Per-FedAvg: all gradients of a round are taken at the broadcast ``theta``, and only the
server moves it. To be compared round by round at equal effort, a client first adapts with half of its passes,
``f`` together with ``phi``, ``T`` and ``psi``, from ``theta`` and at alpha; the result makes its predictions
and never flows back. The other half sums query gradients at ``theta``; their mean is uploaded. The paper
takes one gradient a round; the mean of many has the same expectation and less noise. As the server takes one
step where others take many, beta is of the size that a round of those adds up to: our choice (papers.md 6.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.algorithms.backbone import BackboneAlgorithm, BackboneConfig, split_learner
from mmfl_fast.algorithms.batch_parts import interleaved
from mmfl_fast.algorithms.own_copy import OWN, own_copy, with_own_copy
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import (
    Batch,
    ClientState,
    Context,
    Inputs,
    Phase,
    Sgd,
    State,
    Uploads,
    part_of,
)


class FedMetaConfig(BackboneConfig):
    """Options of FedMeta; ``learning_rate`` is alpha, and what Meta-SGD's rates start from."""

    variant: Literal["maml", "meta-sgd"] = Field("maml", description="meta-sgd: learn a rate per parameter")
    order: Literal["second", "first"] = Field("second", description="of the gradient through the inner step")
    server_rate: float = Field(0.1, gt=0, description="beta of the server's step")


class FedMeta(BackboneAlgorithm):
    """Meta-learned ``f``; every client predicts with its own adapted copy."""

    Config = FedMetaConfig
    personal = ("phi", "T", "psi", OWN)

    def setup(self, federation: Federation, generator: torch.Generator) -> State:
        """Every client's own copy starts as the common ``f``."""
        learner, rest = split_learner(federation, self.initial_models(federation, generator))
        if self.config.variant == "meta-sgd":
            alpha = self.config.learning_rate
            learner |= {f"rate.{n}": torch.full_like(t, alpha) for n, t in learner.items()}
        copy = {n: t for n, t in with_own_copy(learner, self._learnt).items() if part_of(n) == OWN}
        return State(learner, rest.mapped(lambda own: own | copy))

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Logits of the personal model: the adapted copy in the place of ``f``."""
        return super().predict({**params, **own_copy(params)}, inputs)

    def client_phases(self) -> list[Phase]:
        """Passes that adapt, a copy of their result, then as many that sum query gradients."""
        c = self.config
        rest = ("phi", "T", "psi") if c.projection else ("phi", "psi")
        adapt = Phase("adapt", self.adapt_loss, ("f", *rest), self.sgd(c.learning_rate), c.batch_size)
        # Plain steps of rate 1 on a gradient that does not depend on where they lead are a sum.
        query = Phase("query", self.query_loss, self._learnt, Sgd(1.0), c.batch_size)
        keep = replace(adapt, after=lambda params: with_own_copy(params, self._learnt))
        return [*[adapt] * (c.local_epochs - 1), keep, *[query] * c.local_epochs]

    def adapt_loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy; with Meta-SGD the optimiser's steps of ``f`` are at the learnt rates."""
        del context
        learner = self._part(params, "f")
        if self.config.variant == "meta-sgd":
            alpha = self.config.learning_rate
            learner = {n: nn.scale_gradient(t, params[f"rate.{n}"] / alpha) for n, t in learner.items()}
        return self._cross_entropy(params, batch)(learner)

    def query_loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """``L_Q(theta_i)`` at the broadcast ``theta``; its gradient arrives at the parameters that move."""
        received = {
            n: context.start[n] + (t - t.detach()) for n, t in params.items() if part_of(n) in self._learnt
        }
        learner = self._part(received, "f")
        rates = {n: received[f"rate.{n}"] for n in learner} if self.config.variant == "meta-sgd" else None
        support, query = (self._cross_entropy(params, half) for half in interleaved(batch, 2))
        second = self.config.order == "second"
        return query(nn.inner_step(support, learner, rates or self.config.learning_rate, second_order=second))

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send the mean query gradient, by the names of what it belongs to."""
        c = self.config
        steps = c.local_epochs * -(-client.num_train // c.batch_size)
        return {n: (t - params[n]) / steps for n, t in own_copy(params).items()}

    def aggregate(self, state: State, uploads: Uploads, weights: Tensor) -> State:
        """Step on the mean gradient; every client counts alike, as in the paper."""
        gradient = ops.weighted_mean(uploads.rows(), torch.ones_like(weights))
        rate = self.config.server_rate
        return replace(state, shared={n: t - rate * gradient[n] for n, t in state.shared.items()})

    @property
    def _learnt(self) -> tuple[str, ...]:
        return ("f", "rate") if self.config.variant == "meta-sgd" else ("f",)

    def _part(self, params: ClientState, part: str) -> ClientState:
        return {n: t for n, t in params.items() if part_of(n) == part}

    def _cross_entropy(self, params: ClientState, batch: Batch) -> Callable[[ClientState], Tensor]:
        def fit(learner: ClientState) -> Tensor:
            logits = BackboneAlgorithm.predict(self, {**params, **learner}, batch.inputs)
            return nn.cross_entropy(logits, batch.labels)

        return fit
