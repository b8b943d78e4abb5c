"""The steps in C++ give what the compositions of torch functions give, which define them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmfl_fast import _C, ops, use_backend
from mmfl_fast.kernels import one_step
from mmfl_fast.kernels.one_step.in_one_step import in_one_step

DTYPES = [torch.float64, torch.float32]
COUNTS = [1, 2, 7, 130]


def _rows(count: int, dtype: torch.dtype, special: bool) -> Tensor:
    rows = torch.randn(count, 40).to(dtype)
    if special and count > 6:
        # A row with an undefined element, one of rounding alone, one twice, and its opposite.
        rows[1, 3], rows[4], rows[5] = torch.nan, rows[3], -rows[3]
        rows[2] = 0.25 + 1e-7 * rows[2]
    return rows


def _similarities(count: int, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    for special in (False, True):
        rows = _rows(count, dtype, special)
        for origin, mean_origin in (([], True), ([], False), ([rows[0] + 1], False)):
            for centre_rows, negligible in ((False, 0.0), (True, 1e-9)):
                arguments = [rows], 1, True, origin, mean_origin, centre_rows, False, negligible
                yield one_step.cosine, arguments
                yield one_step.angular, arguments
        yield one_step.sq_distance, ([rows], 1, True, False)


def _alignments(count: int, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    views = torch.randn(count, 12, 5).to(dtype)
    yield one_step.alignment, ([views], False, 1e-20)
    yield one_step.alignment, ([views[:1], views[:, :, ::2].mT.contiguous().mT], False, 1e-20)
    views[0] = 1 + 1e-5 * views[0]
    views[count // 2, 0, 0] = torch.nan
    yield one_step.alignment, ([views], False, 1e-8)


def _means(count: int, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    rows = torch.randn(count, 3, 4).to(dtype)
    for weights in (torch.rand(count), torch.rand(2 * count).double()[::2], torch.arange(1, count + 1)):
        yield one_step.weighted_mean, ([rows, rows[..., 0], rows.mT], 3, True, weights)
        yield one_step.weighted_mean, (list(rows.unbind(0)), 1, False, weights)


def _losses(count: int, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    features, prototypes = torch.randn(2, count, 9).to(dtype), torch.randn(2, 4, 9).to(dtype)
    labels = torch.randint(0, 4, (2, count))
    labels[:, 1::3] = -100
    masks = torch.tensor([[True, False, True, True], [False, True, True, True]])
    for mask in (None, masks[0], masks, torch.zeros(4, dtype=torch.bool)):
        for of_client in (prototypes[0], prototypes):
            yield (
                one_step.mean_prototype_loss,
                (features, labels, of_client, mask, 0.2, True, False),
            )
        if mask is not masks:
            one = features[0], labels[0], prototypes[0]
            yield one_step.mean_prototype_loss, (*one, mask, 0.2, False, False)
    yield (
        one_step.mean_prototype_loss,
        (features, torch.full_like(labels, -100), prototypes, None, 0.2, True, False),
    )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cases", [_similarities, _alignments, _means, _losses])
def test_a_step_is_the_composition(
    cases: Callable[[int, torch.dtype], Iterator[tuple[Any, tuple[Any, ...]]]],
    dtype: torch.dtype,
    count: int,
) -> None:
    for function, arguments in cases(count, dtype):
        step, composition = function(*arguments), function.__wrapped__(*arguments)
        # The kernels below are the same; what differs is the last bit of a sum, a root or an arccos. In
        # float32 that of a mean is one of its own.
        single = dtype == torch.float32 and cases in (_means, _losses)
        torch.testing.assert_close(
            step, composition, rtol=2e-6 if single else 1e-13, atol=1e-6 if single else 1e-13, equal_nan=True
        )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_with_gradients_is_the_composition(dtype: torch.dtype, count: int) -> None:
    for function, (features, labels, prototypes, *options) in _losses(count, dtype):
        ends = []
        for call in (function, function.__wrapped__):
            leaves = [tensor.clone().requires_grad_() for tensor in (features, prototypes)]
            loss = call(leaves[0], labels, leaves[1], *options)
            ends.append([loss.detach(), *torch.autograd.grad(0.7 * loss, leaves)])
        for ours, composition in zip(*ends, strict=True):
            assert ours.dtype == composition.dtype
            assert torch.equal(ours.nan_to_num(nan=-7.0), composition.nan_to_num(nan=-7.0))


def test_a_step_with_gradients_is_one_node_and_has_no_second_derivative() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    loss = ops.prototype_contrastive_loss(features, torch.tensor([0, 1, -100]), torch.randn(2, 4))
    assert "MeanPrototypeLoss" in type(loss.grad_fn).__name__
    assert loss.grad_fn.next_functions[0][0].name().endswith("AccumulateGrad")
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), features)


def test_diagonals_stay_exact() -> None:
    rows = _rows(130, torch.float32, special=False)
    assert torch.equal(ops.angular_similarity(rows).diagonal(), torch.ones(130).double())
    assert torch.equal(ops.pairwise_sq_distance(rows).diagonal(), torch.zeros(130).double())
    distance = ops.pairwise_sq_distance(rows)
    assert torch.equal(distance, distance.T)


def test_rounding_leaves_no_range() -> None:
    beyond = torch.tensor([[1.0, -1 - 1e-9], [-1 - 1e-9, 1.0]], dtype=torch.float64)
    none = torch.zeros(2, dtype=torch.float64)
    for products, cosine, distance in ((beyond, -1.0, 4 + 2e-9), (beyond.abs(), 1.0, 0.0)):
        results = [products.clone() for _ in range(4)]
        _C.cosine(results[0], none, 0.0, 1)
        _C.angular(results[1], none, 0.0, 1)
        _C.sq_distance(results[2], 1)
        _C.alignment(results[3], 0.0, 1)
        expected = cosine, (1 + cosine) / 2, distance, min(products[0, 1].item(), 1.0)
        assert [result[0, 1].item() for result in results] == pytest.approx(list(expected), rel=1e-15)


# Which of the two ran can be read off the result.
STEP, COMPOSITION = torch.tensor(1.0), torch.tensor(2.0)
_add = in_one_step("gram", lambda x: x + STEP)(lambda x: x + COMPOSITION)


def test_plain_tensors_take_the_step() -> None:
    x = torch.zeros(())
    assert _add(x) == STEP
    with torch.no_grad():
        assert _add(x.clone().requires_grad_()) == STEP
    with torch.inference_mode():
        assert _add(x) == STEP


def test_what_somebody_watches_takes_the_composition() -> None:
    x = torch.zeros(())
    assert _add(x.clone().requires_grad_()) == COMPOSITION
    assert _add(x.as_subclass(_Subclass)) == COMPOSITION
    assert torch.func.vmap(_add)(x[None]) == COMPOSITION
    assert torch.func.functionalize(_add)(x) == COMPOSITION
    with forward_ad.dual_level():
        assert _add(x) == COMPOSITION
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert _add(x) == COMPOSITION
    assert torch.compile(_add, fullgraph=True, backend="eager")(x) == COMPOSITION


def test_another_backend_takes_the_composition() -> None:
    with use_backend("reference"):
        assert _add(torch.zeros(())) == COMPOSITION
    with use_backend("native"):
        assert _add(torch.zeros(())) == STEP


class _Subclass(Tensor):
    pass
