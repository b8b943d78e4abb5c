"""PCGrad on client updates: Gradient Surgery for Multi-Task Learning (NeurIPS 2020), at the server.

A control for M3Fed's clustering: one ``f`` for all clients, averaged after conflicts between their updates
``g_i = theta_i - theta`` are projected away. Each client visits the others in random order; where
``<g_i, g_j> < 0`` its update, as projected so far, loses its component along the *original* ``g_j``:

    g_i <- g_i - <g_i, g_j> / ||g_j||^2 g_j        theta <- theta + sum_i rho_i g_i

Every projected update is a combination of the original ones, so one Gram matrix decides all of it and one
``mix`` applies it. The paper takes gradients and sums them; here they are the updates of a round and, as in
FedAvg, they are weighted by the share of data, so that without conflicts this is FedAvg of ``f``. ``phi``,
``T`` and ``psi`` are personal as in M3Fed (papers.md 6.4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.algorithms.backbone import split_learner
from mmfl_fast.algorithms.plain_training import PlainTraining
from mmfl_fast.data import Federation
from mmfl_fast.federation import Purpose, State, Uploads, stream


@dataclass(frozen=True)
class PCGradState(State):
    """What the server knows.

    Attributes:
        seed: int64 scalar, of the orders in which clients visit each other.
        round: int64 scalar, number of the next round.
        conflicts: float64 scalar, share of the pairs of the last round with a negative inner product.
    """

    seed: Tensor
    round: Tensor
    conflicts: Tensor


class PCGrad(PlainTraining):
    """FedAvg of ``f`` with projected updates; the rest of the model is personal."""

    personal = ("phi", "T", "psi")

    def setup(self, federation: Federation, generator: torch.Generator) -> PCGradState:
        """The orders' seed is drawn after the models, which therefore start as in every other method."""
        learner, own = split_learner(federation, self.initial_models(federation, generator))
        return PCGradState(
            shared=learner,
            personal=own,
            seed=torch.randint(2**62, (), generator=generator),
            round=torch.tensor(0),
            conflicts=torch.tensor(0.0, dtype=torch.float64),
        )

    def aggregate(self, state: PCGradState, uploads: Uploads, weights: Tensor) -> PCGradState:
        """Project on the K x K inner products, then apply the combination of updates at once."""
        learners = uploads.rows("f")
        products = ops.gram(learners, origin=state.shared)
        combination = weights @ project_conflicts(products, self._orders(state, uploads).to(products.device))
        rows = [state.shared, *learners]
        (learner,) = ops.mix(rows, torch.cat([1 - combination.sum(0, keepdim=True), combination])[None])
        off_diagonal = products[~torch.eye(len(learners), dtype=torch.bool, device=products.device)]
        conflicts = (off_diagonal < 0).double().mean() if len(off_diagonal) else torch.zeros_like(weights[0])
        return replace(state, shared=learner, round=state.round + 1, conflicts=conflicts)

    def metrics(self, state: PCGradState) -> dict[str, Any]:
        """Share of conflicting pairs."""
        return {"conflicts": float(state.conflicts)}

    def _orders(self, state: PCGradState, uploads: Uploads) -> Tensor:
        # A client's order is drawn over the whole federation, so it depends neither on who else takes part
        # nor on the order of the uploads.
        members = np.array([c.index for c in uploads.clients])
        orders = [
            stream(int(state.seed), Purpose.SERVER, int(state.round), int(client))
            .permutation(len(state.personal))[members]
            .argsort()
            for client in members
        ]
        return torch.from_numpy(np.stack(orders))


def project_conflicts(products: Tensor, orders: Tensor) -> Tensor:
    """Combinations that free every update of its conflicts with the others.

    Args:
        products: float64 ``[K, K]``, inner products of the updates.
        orders: int64 ``[K, K]``; row i is a permutation, the order in which i visits all. It skips itself.

    Returns:
        float64 ``[K, K]``; row i gives the projected update of i as a combination of the original ones.
    """
    everyone = torch.arange(len(products), device=products.device)
    squares = products.diagonal()
    combination = torch.eye(len(products), dtype=products.dtype, device=products.device)
    for visited in orders.unbind(dim=1):
        inner = (combination * products[visited]).sum(dim=1)
        conflict = (inner < 0) & (visited != everyone)
        combination[everyone, visited] -= torch.where(conflict, inner / squares[visited], 0.0)
    return combination
