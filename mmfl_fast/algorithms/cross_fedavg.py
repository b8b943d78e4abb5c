"""Cross-FedAvg: FedAvg per group, with the shared block averaged over all clients (papers.md 5.3)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.algorithms.fedavg import FedAvg, FedAvgState, group_means
from mmfl_fast.federation import Uploads


class CrossFedAvg(FedAvg):
    """``f`` crosses modalities and tasks; ``phi``, ``T`` and ``psi`` stay inside the group."""

    def aggregate(self, state: FedAvgState, uploads: Uploads, weights: Tensor) -> FedAvgState:
        """Average ``f`` over everyone; groups that were not drawn get it as well."""
        means = group_means(state.group, uploads, weights)
        shared = ops.weighted_mean(uploads.rows("f"), weights)
        groups = range(len(state.models))
        return replace(
            state,
            models=state.models.replace(
                {g: {**state.models[g], **means.get(g, {}), **shared} for g in groups}
            ),
        )
