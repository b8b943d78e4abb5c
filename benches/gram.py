"""``gram`` through the ops that stand on it."""

from __future__ import annotations

import math
from functools import partial

import torch
from registry import Case, case, gpu_case
from torch import Tensor

from mmfl_fast import ops

TENSORS_PER_MODEL = 20


def _exact_angular(x: Tensor) -> Tensor:
    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    sums = torch.zeros(len(x), dtype=torch.float64)
    # In pieces, so that the float64 copy of the rows is never whole.
    for piece in x.split(1 << 16, dim=1):
        rows = piece.double() - piece.double().mean(dim=0)
        total += rows @ rows.T
        sums += rows.sum(dim=1)
    covariance = total - sums[:, None] * sums / x.shape[1]
    scale = covariance.diagonal().rsqrt()
    sigma = (covariance * scale[:, None] * scale).clamp(-1, 1).fill_diagonal_(1)
    return 1 - torch.arccos(sigma) / math.pi


def _angular(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Case:
    x = torch.randn(rows, columns, dtype=dtype)
    return Case(
        name=f"angular_similarity K={rows} P={columns:.0e} {str(dtype).removeprefix('torch.')}",
        ours=lambda: ops.angular_similarity(x),
        baselines={
            "X.sum()": lambda: x.sum(),
            "X @ X.T": lambda: x @ x.T,
            "corrcoef(X - X.mean(0))": lambda: torch.corrcoef(x - x.mean(dim=0)),
        },
        exact=lambda: _exact_angular(x),
        tolerance=1e-6,
        moved=x.nbytes,
    )


@case
def angular_16() -> Case:
    return _angular(16, 4_000_000)


@case
def angular_64() -> Case:
    return _angular(64, 1_000_000)


@case
def angular_256() -> Case:
    return _angular(256, 1_000_000)


@case
def angular_state_dicts() -> Case:
    x = torch.randn(64, 1_000_000)
    parts = x.split(1_000_000 // TENSORS_PER_MODEL, dim=1)
    models = [{f"layer{s}": part[k].clone() for s, part in enumerate(parts)} for k in range(64)]
    return Case(
        name=f"angular_similarity of 64 state dicts of {TENSORS_PER_MODEL} tensors",
        ours=lambda: ops.angular_similarity(models),
        baselines={"one tensor": lambda: ops.angular_similarity(x), "X @ X.T": lambda: x @ x.T},
        exact=lambda: _exact_angular(x),
        tolerance=1e-6,
    )


@case
def tiny() -> Case:
    x = torch.randn(4, 8)
    return Case(
        name="gram K=4 P=8 (overhead)",
        ours=lambda: ops.gram(x),
        baselines={"X @ X.T": lambda: x @ x.T},
        exact=lambda: x.double() @ x.double().T,
        tolerance=1e-6,
    )


for _rows in (16, 32, 64, 128):
    gpu_case(partial(_angular, _rows, 10_000_000))
gpu_case(partial(_angular, 256, 10_000_000, torch.bfloat16))
