"""Meta-HAR: Federated Representation Learning for Human Activity Recognition (WWW 2021).

Only the embedding is federated. Clients train it to tell whether two rows are of one class, which needs no
common label space; the server takes a Reptile step with weights that favour clients whose embedding moved far
and kept its direction; a personal head and fine-tuned embedding make the predictions:

    pairs:  l = softplus(s) - [y_a = y_b] s,  s = 10 cos(e_a, e_b),  a and b from two halves of a batch
    server: c_i ~ ||theta_i - theta|| |cos(theta_i, theta)|, normalised to sum 1;
            theta <- theta + sigma (sum_i c_i theta_i - theta)
    client: adapt the embedding on pairs, train a fresh head on it, fine-tune both jointly on cross-entropy

Here ``theta`` is ``f``; the embedding is ``T f(phi(x))`` with ``phi`` and ``T`` of the client's own, the head
is ``psi``. The paper personalises once, after the last round. To be compared round by round at equal effort,
a client here personalises in every round within the steps that every method has: half of the passes train on
pairs and their result is uploaded; the other half personalises a copy of it, first the head, then both, and
never flows back. So a personal model rests on the ``f`` that the round began with. With one local epoch the
second half is a single pass, the joint one. Restarted in every round, a head would get the few steps of one
round where the paper trains it to the end: by default it is fresh when the run begins and kept from then on.
As in the paper one rate serves everything local; the optimiser is every method's SGD, not the authors' Adam
(papers.md 5.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.algorithms.backbone import BackboneAlgorithm, BackboneConfig, split_learner
from mmfl_fast.algorithms.own_copy import OWN, own_copy, with_own_copy
from mmfl_fast.data import Federation
from mmfl_fast.federation import (
    Batch,
    ClientState,
    Context,
    Inputs,
    Phase,
    State,
    Uploads,
    part_of,
)


class MetaHARConfig(BackboneConfig):
    """Options of Meta-HAR; ``learning_rate`` is the one of all its passes."""

    server_rate: float = Field(1.0, gt=0, description="sigma of the Reptile step")
    pair_scale: float = Field(10.0, gt=0, description="factor of the cosine in the pairwise loss")
    head: Literal["kept", "fresh"] = Field("kept", description="fresh: the head restarts in every round")


class MetaHAR(BackboneAlgorithm):
    """``f`` is federated on pairs; every client predicts with its own fine-tuned copy."""

    Config = MetaHARConfig
    personal = ("phi", "T", "psi", OWN)

    def setup(self, federation: Federation, generator: torch.Generator) -> State:
        """Every client's own copy starts as the common model."""
        models = self.initial_models(federation, generator)
        learner, rest = split_learner(federation, models)

        def with_copy(parts: ClientState) -> ClientState:
            whole = with_own_copy({**learner, **parts}, self._embedding)
            return {n: t for n, t in whole.items() if part_of(n) != "f"}

        return State(learner, rest.mapped(with_copy))

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Logits of the personal model: ``psi`` on the client's own embedding."""
        return nn.linear(params, "psi", self.embed(own_copy(params), inputs))

    def client_phases(self) -> list[Phase]:
        """``local_epochs`` passes on pairs, then as many that personalise."""
        c = self.config
        sgd = self.sgd(c.learning_rate)
        pairs = Phase("pairs", self.pair_loss, self._embedding, sgd, c.batch_size)
        head = Phase("head", self.loss, ("psi",), sgd, c.batch_size)
        joint = Phase("joint", self.loss, ("psi", OWN), sgd, c.batch_size)
        heads = c.local_epochs // 2
        return [
            *[pairs] * (c.local_epochs - 1),
            replace(pairs, after=self._begin_personal),
            *[head] * heads,
            *[joint] * (c.local_epochs - heads),
        ]

    def pair_loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Logistic loss of "same class" for rows 0 and 1, 2 and 3, ... of a batch."""
        del context
        return pairwise_loss(self.embed(params, batch.inputs), batch.labels, self.config.pair_scale)

    def aggregate(self, state: State, uploads: Uploads, weights: Tensor) -> State:
        """Reptile step to the weighted mean of the embeddings."""
        learners = uploads.rows("f")
        importance = reptile_weights(learners, state.shared, weights)
        rate = self.config.server_rate
        matrix = torch.cat([1 - rate * importance.sum(0, keepdim=True), rate * importance])
        (learner,) = ops.mix([state.shared, *learners], matrix[None])
        return replace(state, shared=learner)

    @property
    def _embedding(self) -> tuple[str, ...]:
        return ("phi", "f", "T") if self.config.projection else ("phi", "f")

    def _begin_personal(self, params: ClientState) -> ClientState:
        params = with_own_copy(params, self._embedding)
        if self.config.head == "kept":
            return params
        # A linear head has no symmetry to break: zero is a fresh start that needs no random numbers.
        return {n: torch.zeros_like(t) if part_of(n) == "psi" else t for n, t in params.items()}


def pairwise_loss(embeddings: Tensor, labels: Tensor, scale: float) -> Tensor:
    """``softplus(s) - [y_a = y_b] s`` with ``s = scale cos(e_a, e_b)``, mean over the pairs of a batch.

    Args:
        embeddings: ``[B, D]``. Rows 0, 2, ... are one half, rows 1, 3, ... the other, so that padding behind
            the last row changes no pair; an odd row is left over.
        labels: int64 ``[B]``; a pair with a row of label -100 does not count. 0 if no pair counts.
        scale: factor of the cosine.
    """
    pairs = len(labels) // 2
    a, b = labels[0::2][:pairs], labels[1::2]
    unit = nn.unit_rows(embeddings)
    score = scale * (unit[0::2][:pairs] * unit[1::2]).sum(dim=1)
    counted = (a != -100) & (b != -100)
    loss = F.softplus(score) - torch.where(a == b, score, 0.0)
    return torch.where(counted, loss, 0.0).sum() / counted.sum().clamp(min=1)


def reptile_weights(learners: Sequence[ClientState], origin: ClientState, fallback: Tensor) -> Tensor:
    """``c_i ~ ||theta_i - theta|| |cos(theta_i, theta)|``, float64 ``[K]`` with sum 1.

    Args:
        learners: K embeddings.
        origin: theta, what they started from.
        fallback: float64 ``[K]``, taken if no embedding moved.
    """
    moved = ops.gram(learners, origin=origin).diagonal().sqrt()
    kept = ops.cosine_similarity([origin, *learners], origin=None)[0, 1:].abs()
    importance = moved * kept
    return importance / importance.sum() if importance.sum() > 0 else fallback
