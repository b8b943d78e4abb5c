"""``cross_gram_sq`` through linear CKA."""

from __future__ import annotations

import torch
from registry import Case, case
from torch import Tensor

from mmfl_fast import ops


def _prepared(x: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(x, dim=-1)
    return unit - unit.mean(dim=1, keepdim=True)


def _from_products(products: Tensor) -> Tensor:
    scale = products.diagonal().rsqrt()
    return products * scale[:, None] * scale


def _stacked_grams(x: Tensor) -> Tensor:
    y = _prepared(x)
    grams = torch.bmm(y, y.mT).flatten(1)
    return _from_products(grams @ grams.mT)


def _pair_loop(x: Tensor) -> Tensor:
    y = _prepared(x)
    products = torch.empty(len(x), len(x))
    for i, a in enumerate(y):
        for j, b in enumerate(y[: i + 1]):
            products[i, j] = products[j, i] = (a.mT @ b).square().sum()
    return _from_products(products)


def _linear_cka(views: int, rows: int, columns: int) -> Case:
    x = torch.randn(views, rows, columns)
    return Case(
        name=f"linear_cka K={views} n={rows} d={columns}",
        ours=lambda: ops.linear_cka(x),
        baselines={"stacked Grams": lambda: _stacked_grams(x), "pair loop": lambda: _pair_loop(x)},
        exact=lambda: _stacked_grams(x.double()),
        tolerance=1e-6,
    )


@case
def more_columns_than_rows() -> Case:
    return _linear_cka(32, 256, 512)


@case
def more_rows_than_columns() -> Case:
    return _linear_cka(32, 2048, 64)
