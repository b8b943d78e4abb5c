"""Per-FedAvg: Personalized Federated Learning with Theoretical Guarantees (NeurIPS 2020).

The server seeks the ``f`` from which a gradient step of its own serves every client best. With independent
batches D, D' and D'' a local step is

    F_i(w) = f_i(w - alpha grad f_i(w)),   w~ = w - alpha g(w; D)
    w <- w - beta (I - alpha H(w; D'')) g(w~; D')

First order drops H; Hessian-free takes ``H v`` from two gradients at ``w +- delta v``. The server averages
``w`` by data. Here ``w`` is ``f``; ``phi``, ``T`` and ``psi`` are the client's own. The independent batches
are disjoint rows of one batch, so that a step sees as many rows as any other method's.

The paper adapts after training; to be compared round by round at equal effort, a client here adapts within
the passes that every method has. A local epoch is a pass of meta-steps on ``f`` (beta is
``global_learning_rate``) and one that trains ``phi``, ``T`` and ``psi`` together with a copy of the new
``f``, at alpha, which is ``learning_rate``. The copy makes the predictions and never flows back; it is
renewed in every epoch. It takes the steps of a pass where the paper takes one (papers.md 6.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn
from mmfl_fast.algorithms.backbone import BackboneAlgorithm, BackboneConfig, split_learner
from mmfl_fast.algorithms.batch_parts import interleaved
from mmfl_fast.algorithms.own_copy import OWN, own_copy, with_own_copy
from mmfl_fast.data import Federation
from mmfl_fast.federation import Batch, ClientState, Context, Inputs, Phase, State, part_of


class PerFedAvgConfig(BackboneConfig):
    """Options of Per-FedAvg."""

    meta_gradient: Literal["first-order", "hessian-free"] = Field(
        "first-order", description="drop the Hessian, or take its product from finite differences"
    )


class PerFedAvg(BackboneAlgorithm):
    """Meta-learned ``f``; every client predicts with its own adapted copy."""

    Config = PerFedAvgConfig
    personal = ("phi", "T", "psi", OWN)

    def setup(self, federation: Federation, generator: torch.Generator) -> State:
        """Every client's own copy starts as the common ``f``."""
        learner, rest = split_learner(federation, self.initial_models(federation, generator))
        copy = {n: t for n, t in with_own_copy(learner, ("f",)).items() if part_of(n) == OWN}
        return State(learner, rest.mapped(lambda own: own | copy))

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Logits of the personal model: the adapted copy in the place of ``f``."""
        return super().predict({**params, **own_copy(params)}, inputs)

    def client_phases(self) -> list[Phase]:
        """Per local epoch a pass of meta-steps, then one that adapts."""
        c = self.config
        rest = ("phi", "T", "psi") if c.projection else ("phi", "psi")
        meta = Phase(
            "meta",
            self.meta_loss,
            ("f",),
            self.sgd(c.global_learning_rate),
            c.batch_size,
            after=lambda params: with_own_copy(params, ("f",)),
        )
        adapt = Phase("adapt", self.loss, (OWN, *rest), self.sgd(c.learning_rate), c.batch_size)
        return [meta, adapt] * int(c.local_epochs)

    def meta_loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy after a step of ``f``; its gradient is the chosen meta-gradient."""
        del context
        learner = {n: t for n, t in params.items() if part_of(n) == "f"}

        def on(part: Batch) -> Callable[[ClientState], Tensor]:
            def fit(f: ClientState) -> Tensor:
                logits = BackboneAlgorithm.predict(self, {**params, **f}, part.inputs)
                return nn.cross_entropy(logits, part.labels)

            return fit

        rate = self.config.learning_rate
        if self.config.meta_gradient == "first-order":
            support, query = map(on, interleaved(batch, 2))
            return nn.adapted_loss(support, query, learner, rate, hessian_free=False)
        support, query, curvature = map(on, interleaved(batch, 3))
        return nn.adapted_loss(support, query, learner, rate, hessian_free=True, curvature=curvature)
