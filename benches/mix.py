"""``mix`` through the ops that stand on it."""

from __future__ import annotations

import torch
from registry import Case, case

from mmfl_fast import ops

ROWS, COLUMNS = 64, 1_000_000


@case
def weighted_mean() -> Case:
    x, weights = torch.randn(ROWS, COLUMNS), torch.rand(ROWS)
    share = weights / weights.sum()
    return Case(
        name=f"weighted_mean K={ROWS} P={COLUMNS:.0e}",
        ours=lambda: ops.weighted_mean(x, weights),
        baselines={"X.sum()": lambda: x.sum(), "w @ X": lambda: share @ x},
        exact=lambda: share.double() @ x.double(),
        tolerance=1e-6,
    )


@case
def cluster_means() -> Case:
    x = torch.randn(ROWS, COLUMNS)
    cluster = torch.arange(ROWS) % 4
    matrix = (cluster == torch.arange(4)[:, None]).double() / (ROWS // 4)
    return Case(
        name=f"mix, 4 cluster means of K={ROWS} P={COLUMNS:.0e}",
        ours=lambda: ops.mix(x, matrix),
        baselines={"X.sum()": lambda: x.sum(), "W @ X": lambda: matrix.float() @ x},
        exact=lambda: matrix @ x.double(),
        tolerance=1e-6,
    )


@case
def consensus() -> Case:
    operators = torch.randn(ROWS, 384, 512)
    matrix = torch.softmax(torch.randn(ROWS, ROWS, dtype=torch.float64), dim=1)
    return Case(
        name=f"consensus_mix K={ROWS} of 384 x 512",
        ours=lambda: ops.consensus_mix(operators, matrix),
        baselines={"W @ X": lambda: (matrix.float() @ operators.flatten(1)).reshape(operators.shape)},
        exact=lambda: (matrix @ operators.double().flatten(1)).reshape(operators.shape),
        tolerance=1e-6,
    )
