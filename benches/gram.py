"""``gram`` through the ops that stand on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmfl_fast import ops

from .registry import BANDWIDTH, FLOOR, TIME, Calls, Case, Target, Work, at_least, at_most, times_faster

SUM, PRODUCT, CORRCOEF = "X.sum()", "X @ X.T", "corrcoef(X - X.mean(0))"
ONE_TENSOR = "one tensor"


def _exact_angular(x: Tensor) -> Tensor:
    total = x.new_zeros(len(x), len(x), dtype=torch.float64)
    sums = x.new_zeros(len(x), dtype=torch.float64)
    # In pieces, so that the float64 copy of the rows is never whole.
    for piece in x.split(1 << 16, dim=1):
        rows = piece.double() - piece.double().mean(dim=0)
        total += rows @ rows.T
        sums += rows.sum(dim=1)
    covariance = total - sums[:, None] * sums / x.shape[1]
    scale = covariance.diagonal().rsqrt()
    sigma = (covariance * scale[:, None] * scale).clamp(-1, 1).fill_diagonal_(1)
    return 1 - torch.arccos(sigma) / math.pi


def _build_angular(rows: int, columns: int, dtype: torch.dtype) -> Calls:
    x = torch.randn(rows, columns, dtype=dtype)
    return Calls(
        ours=lambda: ops.angular_similarity(x),
        baselines={
            SUM: lambda: x.sum(),
            PRODUCT: lambda: x @ x.T,
            CORRCOEF: lambda: torch.corrcoef(x - x.mean(dim=0)),
        },
        exact=lambda: _exact_angular(x),
        work=Work(moved=x.nbytes, flops=rows * (rows + 1) * columns, dtype=dtype),
    )


def _angular(rows: int, columns: int, *targets: Target, dtype: torch.dtype = torch.float32) -> Case:
    return Case(
        name=f"angular_similarity K={rows} P={columns:.0e} {str(dtype).removeprefix('torch.')}",
        primitive="gram",
        build=_build_angular,
        arguments={"rows": rows, "columns": columns, "dtype": dtype},
        targets=targets,
    )


def _build_state_dicts(models: int, columns: int, tensors: int) -> Calls:
    x = torch.randn(models, columns)
    parts = x.tensor_split(tensors, dim=1)
    states = [{f"layer{s}": part[k].clone() for s, part in enumerate(parts)} for k in range(models)]
    return Calls(
        ours=lambda: ops.angular_similarity(states),
        baselines={ONE_TENSOR: lambda: ops.angular_similarity(x), PRODUCT: lambda: x @ x.T},
        exact=lambda: _exact_angular(x),
        work=Work(moved=x.nbytes, flops=models * (models + 1) * columns),
    )


def _state_dicts(*targets: Target) -> Case:
    return Case(
        name="angular_similarity of 64 state dicts of 20 tensors P=1e+06",
        primitive="gram",
        build=_build_state_dicts,
        arguments={"models": 64, "columns": 1_000_000, "tensors": 20},
        targets=targets,
    )


def _build_tiny() -> Calls:
    x = torch.randn(4, 8)
    return Calls(
        ours=lambda: ops.gram(x),
        baselines={PRODUCT: lambda: x @ x.T},
        exact=lambda: x.double() @ x.double().T,
    )


def _tiny(*targets: Target) -> Case:
    return Case("gram K=4 P=8 (overhead)", "gram", _build_tiny, targets=targets, repeats=100)


CASES = (
    _angular(16, 4_000_000, at_most(2.0, SUM), times_faster(15, CORRCOEF)),
    _angular(64, 1_000_000, at_most(0.42, PRODUCT), times_faster(9, CORRCOEF)),
    _angular(256, 1_000_000, at_most(0.38, PRODUCT)),
    _state_dicts(at_most(1.1, ONE_TENSOR)),
    _tiny(at_most(8, TIME)),
)

_STREAMING = at_least(0.85, BANDWIDTH), times_faster(5, CORRCOEF), at_most(1, PRODUCT)
_MULTIPLYING = (at_least(0.6, FLOOR),)

GPU_CASES = (
    _angular(16, 10_000_000, *_STREAMING),
    _angular(32, 10_000_000, *_STREAMING),
    _angular(64, 10_000_000, *_STREAMING),
    _angular(16, 100_000_000, *_STREAMING),
    _angular(64, 100_000_000, *_STREAMING),
    _angular(128, 10_000_000, *_MULTIPLYING),
    _angular(256, 10_000_000, *_MULTIPLYING, dtype=torch.bfloat16),
    _state_dicts(),
    _tiny(),
)
