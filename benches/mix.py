"""``mix`` through the ops that stand on it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast import ops

from .registry import BANDWIDTH, TIME, Calls, Case, Target, Work, at_least, at_most

SUM, PRODUCT = "X.sum()", "w @ X"


def _running_sum(x: Tensor, shares: list[float]) -> Tensor:
    total = x[0] * shares[0]
    for row, share in zip(x[1:], shares[1:], strict=True):
        total.add_(row, alpha=share)
    return total


def _build_weighted_mean(rows: int, columns: int) -> Calls:
    x, weights = torch.randn(rows, columns), torch.rand(rows)
    share = weights / weights.sum()
    shares = share.tolist()
    exact_share = weights.double() / weights.double().sum()
    return Calls(
        ours=lambda: ops.weighted_mean(x, weights),
        baselines={
            SUM: lambda: x.sum(),
            PRODUCT: lambda: share @ x,
            "add_ row by row": lambda: _running_sum(x, shares),
        },
        exact=lambda: torch.cat([exact_share @ piece.double() for piece in x.split(1 << 18, dim=1)]),
        work=Work(moved=x.nbytes + columns * x.itemsize),
    )


def _weighted_mean(rows: int, columns: int, *targets: Target) -> Case:
    return Case(
        name=f"weighted_mean K={rows} P={columns:.0e}",
        primitive="mix",
        build=_build_weighted_mean,
        arguments={"rows": rows, "columns": columns},
        targets=targets,
    )


def _build_cluster_means(rows: int, columns: int, clusters: int) -> Calls:
    x = torch.randn(rows, columns)
    cluster = torch.arange(rows) % clusters
    members = (cluster == torch.arange(clusters)[:, None]).double()
    matrix = members / members.sum(dim=1, keepdim=True)
    single, counts = matrix.float(), members.sum(dim=1, keepdim=True).float()
    return Calls(
        ours=lambda: ops.mix(x, matrix),
        baselines={
            SUM: lambda: x.sum(),
            "W @ X": lambda: single @ x,
            "index_add_": lambda: x.new_zeros(clusters, columns).index_add_(0, cluster, x).div_(counts),
        },
        exact=lambda: matrix @ x.double(),
        work=Work(moved=x.nbytes + clusters * columns * x.itemsize),
    )


def _cluster_means(rows: int, columns: int, *targets: Target) -> Case:
    return Case(
        name=f"mix, 4 cluster means of K={rows} P={columns:.0e}",
        primitive="mix",
        build=_build_cluster_means,
        arguments={"rows": rows, "columns": columns, "clusters": 4},
        targets=targets,
    )


def _build_consensus(operators: int, outputs: int, inputs: int) -> Calls:
    x = torch.randn(operators, outputs, inputs)
    matrix = torch.softmax(torch.randn(operators, operators, dtype=torch.float64), dim=1)
    single = matrix.float()
    return Calls(
        ours=lambda: ops.consensus_mix(x, matrix),
        baselines={"W @ X": lambda: (single @ x.flatten(1)).reshape(x.shape)},
        exact=lambda: (matrix @ x.double().flatten(1)).reshape(x.shape),
        work=Work(moved=2 * x.nbytes),
    )


_CONSENSUS = Case(
    name="consensus_mix K=64 of 384 x 512",
    primitive="mix",
    build=_build_consensus,
    arguments={"operators": 64, "outputs": 384, "inputs": 512},
)


def _build_tiny_mean() -> Calls:
    x, weights = torch.randn(4, 8), torch.rand(4)
    exact_share = weights.double() / weights.double().sum()
    return Calls(
        ours=lambda: ops.weighted_mean(x, weights),
        baselines={PRODUCT: lambda: (weights / weights.sum()) @ x},
        exact=lambda: exact_share @ x.double(),
    )


def _tiny_mean(*targets: Target) -> Case:
    return Case("weighted_mean K=4 P=8 (overhead)", "mix", _build_tiny_mean, targets=targets, repeats=100)


def _build_tiny_mix() -> Calls:
    x, matrix = torch.randn(4, 8), torch.rand(2, 4, dtype=torch.float64)
    single = matrix.float()
    return Calls(
        ours=lambda: ops.mix(x, matrix),
        baselines={"W @ X": lambda: single @ x},
        exact=lambda: matrix @ x.double(),
    )


def _tiny_mix(*targets: Target) -> Case:
    return Case("mix K=4 R=2 P=8 (overhead)", "mix", _build_tiny_mix, targets=targets, repeats=100)


CASES = (
    _weighted_mean(64, 1_000_000, at_most(1.3, SUM), at_most(0.8, PRODUCT)),
    _cluster_means(64, 1_000_000),
    _CONSENSUS,
    _tiny_mean(at_most(8, TIME)),
    _tiny_mix(at_most(8, TIME)),
)

_STREAMING = at_least(0.85, BANDWIDTH)

GPU_CASES = (
    _weighted_mean(64, 10_000_000, _STREAMING),
    _cluster_means(64, 10_000_000, _STREAMING),
    _CONSENSUS,
    _tiny_mean(),
    _tiny_mix(),
)
