"""``mix`` through the ops that stand on it."""

from __future__ import annotations

from functools import partial

import torch
from registry import Case, case, gpu_case

from mmfl_fast import ops

ROWS, COLUMNS = 64, 1_000_000


def _weighted_mean(columns: int) -> Case:
    x, weights = torch.randn(ROWS, columns), torch.rand(ROWS)
    share = weights / weights.sum()
    return Case(
        name=f"weighted_mean K={ROWS} P={columns:.0e}",
        ours=lambda: ops.weighted_mean(x, weights),
        baselines={"X.sum()": lambda: x.sum(), "w @ X": lambda: share @ x},
        exact=lambda: torch.cat([share.double() @ piece.double() for piece in x.split(1 << 18, dim=1)]),
        tolerance=1e-6,
        moved=x.nbytes + columns * x.itemsize,
    )


@case
def weighted_mean() -> Case:
    return _weighted_mean(COLUMNS)


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


gpu_case(partial(_weighted_mean, 10 * COLUMNS))
