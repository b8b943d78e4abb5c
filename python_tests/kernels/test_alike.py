"""Thousands of tensors compared at once, in C++ and in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from mmfl_fast import _C
from mmfl_fast.kernels.alike import alike
from mmfl_fast.kernels.extension import TORCH_EXCHANGE

needs_the_table = pytest.mark.skipif(TORCH_EXCHANGE is None, reason="torch before 2.10 has no such table")


class Own(Tensor):
    pass


@pytest.fixture(params=["C++", "Python"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "Python":
        _C.set_exchange(None)
    yield request.param
    _C.set_exchange(TORCH_EXCHANGE)


def grid(at: int = 0, other: Any = None) -> list[Any]:
    lines = [[torch.randn(2, 3), torch.randn(3, 2).T, torch.randn((), dtype=torch.float16)] for _ in range(4)]
    flat: list[Any] = [tensor for line in lines for tensor in line]
    if other is not None:
        flat[at] = other
    return flat


@pytest.mark.parametrize(
    ("at", "other"),
    [
        (0, None),
        (3, torch.randn(2, 6)[:, ::2]),
        (4, Parameter(torch.randn(2, 3))),
        (6, torch.randn(1, 3).expand(2, 3)),
        (9, torch.randn(2, 3).as_subclass(Own)),
    ],
    ids=["all", "strided", "parameter", "expanded", "subclass"],
)
def test_what_is_alike(way: str, at: int, other: Any) -> None:
    assert alike(grid(at, other), 3)


@pytest.mark.parametrize(
    ("at", "other"),
    [
        (3, torch.randn(3, 2)),
        (10, torch.randn(6)),
        (11, torch.randn(1, dtype=torch.float16)),
        (5, torch.randn(())),
        (8, torch.randn((), dtype=torch.bfloat16)),
        (7, torch.randn(2, 3, device="meta")),
        (1, torch.randn(2, 3, device="meta")),
        (6, torch.randn(2, 3).to_sparse()),
        (9, torch.randn(2, 3).numpy()),
        (9, 3.0),
    ],
    ids=[
        "shape", "dimensions", "a scalar", "dtype", "half", "device", "device in the first line", "sparse",
        "array", "number",
    ],
)  # fmt: skip
def test_what_is_not(way: str, at: int, other: Any) -> None:
    assert not alike(grid(at, other), 3)


@needs_the_table
def test_plain_tensors_are_compared_in_one_call() -> None:
    assert _C.alike(grid(4, Parameter(torch.randn(2, 3))), 3, (Tensor, Parameter))
    assert not _C.alike(grid(4, torch.randn(3, 2)), 3, (Tensor, Parameter))
    assert not _C.alike(grid(4, torch.randn(2, 3).as_subclass(Own)), 3, (Tensor, Parameter))


def test_under_a_transform_the_shapes_are_those_of_a_sample() -> None:
    def same(x: Tensor, y: Tensor) -> Tensor:
        assert alike([x, y[0]], 1)
        assert not alike([x, y], 1)
        return x

    torch.func.vmap(same)(torch.randn(5, 3), torch.randn(5, 2, 3))
