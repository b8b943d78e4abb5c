"""How the extension reads a tensor: through torch's table of C functions, or through its attributes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfl_fast import _C, ops
from mmfl_fast.kernels.extension import TORCH_EXCHANGE

needs_the_table = pytest.mark.skipif(TORCH_EXCHANGE is None, reason="torch before 2.10 has no such table")


@pytest.fixture
def by_attributes() -> Iterator[None]:
    _C.set_exchange(None)
    yield
    _C.set_exchange(TORCH_EXCHANGE)


def _gram_of(tensor: Any) -> Tensor:
    out, mean = torch.empty(2, 2, dtype=torch.float64), torch.empty(2, dtype=torch.float64)
    _C.gram([tensor], 1, True, [], False, False, out, mean, 1)
    return out


def _like_a_tensor(tensor: Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        shape=tensor.shape, stride=tensor.stride, data_ptr=tensor.data_ptr, dtype=tensor.dtype
    )


def test_attributes_are_enough(by_attributes: None) -> None:
    x = torch.randn(2, 3)
    assert torch.equal(_gram_of(_like_a_tensor(x)), _gram_of(x))


@needs_the_table
def test_the_table_takes_tensors_alone() -> None:
    with pytest.raises(RuntimeError, match="cast"):
        _gram_of(_like_a_tensor(torch.randn(2, 3)))


@pytest.mark.parametrize("table", [None, 0, object()], ids=["none", "an older form", "something else"])
def test_what_is_no_table_is_not_used(table: object, by_attributes: None) -> None:
    _C.set_exchange(table)
    x = torch.randn(2, 3)
    assert torch.equal(_gram_of(_like_a_tensor(x)), _gram_of(x))


def _results(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, 10, generator=generator).to(dtype)
    forms = [whole, whole[1:, :, ::2], whole.transpose(1, 2), whole[:1].expand(6, 4, 10), whole[:, :0]]
    labels, mask = torch.tensor([0, 2, 1, -100])[:, None].expand(4, 6), torch.tensor([True, True, False])
    results = [ops.gram(form) for form in forms]
    results.append(ops.gram([{"a": form[0], "b": form[1].T} for form in (whole[0:2], whole[2:4])]))
    results += [ops.weighted_mean(form, torch.arange(1.0, len(form) + 1)) for form in forms]
    results += ops.mix([whole, whole[..., 1:3]], torch.rand(2, 6, generator=generator))
    results.append(ops.linear_cka(whole.mT))
    features = whole.transpose(0, 1).detach().requires_grad_()
    loss = ops.prototype_contrastive_loss(features, labels, whole[:3, 0], class_mask=mask, reduction="none")
    return [*results, loss.detach(), *torch.autograd.grad(loss.square().sum(), features)]


@needs_the_table
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_both_ways_read_the_same(dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    expected = _results(dtype)
    request.getfixturevalue("by_attributes")
    for got, wanted in zip(_results(dtype), expected, strict=True):
        assert torch.equal(got, wanted)


def test_parameters_need_no_detaching() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(_gram_of(torch.nn.Parameter(x)), _gram_of(x))


@needs_the_table
def test_what_has_no_address_is_refused() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        _gram_of(torch.empty(2, 3, device="meta"))
