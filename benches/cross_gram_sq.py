"""``cross_gram_sq`` through linear CKA."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmfl_fast import ops

from .registry import EXTRA_MEMORY, TIME, Calls, Case, Target, at_most, times_faster

GRAMS, PAIRS, PRODUCT, BATCHED = (
    "stacked Grams",
    "loop over pairs",
    "one product of all columns",
    "bmm of pairs",
)


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


def _one_product(x: Tensor) -> Tensor:
    views, _, columns = x.shape
    y = _prepared(x).transpose(0, 1).flatten(1)
    squares = (y.mT @ y).square_()
    return _from_products(squares.view(views, columns, views, columns).sum(dim=(1, 3)))


def _pair_loop(x: Tensor) -> Tensor:
    y = _prepared(x)
    products = x.new_empty(len(x), len(x))
    for i, a in enumerate(y):
        for j, b in enumerate(y[: i + 1]):
            products[i, j] = products[j, i] = (a.mT @ b).square().sum()
    return _from_products(products)


def _batched_pairs(x: Tensor) -> Tensor:
    y = _prepared(x)
    products = x.new_empty(len(x), len(x))
    for i in range(len(x)):
        below = torch.bmm(y[i].mT.expand(i + 1, -1, -1), y[: i + 1])
        products[i, : i + 1] = products[: i + 1, i] = below.square_().sum(dim=(1, 2))
    return _from_products(products)


_EXPRESSIONS = {GRAMS: _stacked_grams, PAIRS: _pair_loop, PRODUCT: _one_product, BATCHED: _batched_pairs}


def _build(views: int, rows: int, columns: int, baselines: tuple[str, ...], memory: bool) -> Calls:
    x = torch.randn(views, rows, columns)
    pairs = views * (views + 1) // 2
    return Calls(
        ours=lambda: ops.linear_cka(x),
        baselines={name: partial(_EXPRESSIONS[name], x) for name in baselines},
        exact=lambda: _stacked_grams(x.double()),
        avoided=pairs * columns**2 * x.itemsize if memory else 0,
    )


def _linear_cka(
    views: int,
    rows: int,
    columns: int,
    baselines: tuple[str, ...],
    *targets: Target,
    memory: bool = False,
    label: str = "",
    repeats: int = 1,
) -> Case:
    return Case(
        name=f"linear_cka K={views} n={rows} d={columns}{label}",
        primitive="cross_gram_sq",
        build=_build,
        arguments={
            "views": views,
            "rows": rows,
            "columns": columns,
            "baselines": baselines,
            "memory": memory,
        },
        targets=targets,
        repeats=repeats,
    )


def _tiny(*targets: Target) -> Case:
    return _linear_cka(3, 8, 4, (GRAMS,), *targets, label=" (overhead)", repeats=100)


CASES = (
    _linear_cka(32, 256, 512, (GRAMS, PAIRS), at_most(0.5, GRAMS), times_faster(50, PAIRS)),
    _linear_cka(32, 2048, 64, (PRODUCT, GRAMS, PAIRS)),
    _tiny(at_most(8, TIME)),
)

GPU_CASES = (
    _linear_cka(
        64,
        512,
        512,
        (GRAMS, BATCHED),
        at_most(1, GRAMS),
        at_most(1, BATCHED),
        at_most(0.1, EXTRA_MEMORY),
        memory=True,
    ),
    _linear_cka(32, 2048, 64, (PRODUCT, GRAMS)),
    _tiny(),
)
