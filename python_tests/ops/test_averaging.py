from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfl_fast import ops


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (5, 1000), (70, 4099)])
def test_weighted_mean_against_numpy(rows: int, columns: int, dtype: torch.dtype) -> None:
    x, weights = torch.randn(rows, columns).to(dtype), torch.rand(rows, dtype=torch.float64)
    exact = np.average(x.double().numpy(), axis=0, weights=weights.numpy())
    mean = ops.weighted_mean(x, weights)
    assert mean.dtype == dtype
    torch.testing.assert_close(mean, torch.from_numpy(exact).to(dtype))


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "weights",
    [
        [3, 1, 0],
        (3.0, 1.0, 0.0),
        [torch.tensor(3.0), torch.tensor(1.0), 0],
        np.array([3, 1, 0]),
        _read_only(np.array([3.0, 1.0, 0.0])),
        np.array([0, 1, 3])[::-1],
        torch.tensor([3, 1, 0]),
    ],
)
def test_weights_are_normalised_and_zero_is_not_read(weights: Any) -> None:
    x = torch.tensor([[1.0, 2.0], [5.0, 6.0], [torch.nan, torch.inf]])
    assert torch.equal(ops.weighted_mean(x, weights), torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"weights must have shape \(3,\), one per row; got \(2,\)"),
        ([[1.0], [2.0], [3.0]], r"got \(3, 1\)"),
        ([1.0, -2.0, 3.0], r"weights\[1\] is -2.0"),
        ([1.0, 2.0, torch.inf], r"weights\[2\] is inf"),
        ([torch.nan, 2.0, 1.0], r"weights\[0\] is nan"),
        (torch.ones(3, device="meta"), "weights must have values beside rows on cpu; got .* on meta"),
        ([0.0, 0.0, 0.0], "positive sum that is finite; got 0.0"),
        ([1e308, 1e308, 1e308], "positive sum that is finite; got inf"),
    ],
)
def test_wrong_weights(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.weighted_mean(torch.randn(3, 4), weights)


@pytest.mark.parametrize("numbers", [None, "abc", ["a", "b", "c"], {"a": 1.0}, torch.ones(3) * 1j])
def test_weights_and_matrix_that_are_no_numbers(numbers: Any) -> None:
    with pytest.raises(TypeError, match=r"weights must be .*numbers; got"):
        ops.weighted_mean(torch.randn(3, 4), numbers)
    with pytest.raises(TypeError, match=r"matrix must be .*numbers; got"):
        ops.mix(torch.randn(3, 4), numbers)


def test_a_list_of_weights_keeps_their_gradients() -> None:
    x, weights = torch.randn(2, 3), [torch.tensor(1.0, requires_grad=True), torch.tensor(3.0)]
    ops.weighted_mean(x, weights).sum().backward()
    torch.testing.assert_close(weights[0].grad, (x[0] - (x[0] + 3 * x[1]) / 4).sum() / 4)


def test_mix_makes_cluster_means() -> None:
    x = torch.randn(6, 50)
    membership = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.25, 0.25, 0.25, 0.25]])
    means = ops.mix(x, membership)
    torch.testing.assert_close(means, torch.stack([x[:2].mean(dim=0), x[2:].mean(dim=0)]))


@pytest.mark.parametrize("matrix", [torch.ones(3), torch.ones(2, 4), torch.ones(1, 2, 3)])
def test_wrong_matrix(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match=r"matrix must have shape \(R, 3\)"):
        ops.mix(torch.randn(3, 4), matrix)


def test_gradients() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.weighted_mean, (x, weights))
    assert torch.autograd.gradcheck(ops.mix, (x, matrix))
    assert torch.autograd.gradgradcheck(ops.mix, (x, matrix))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
def test_transforms() -> None:
    x, weights = torch.randn(2, 3, 4, dtype=torch.float64), torch.rand(3, dtype=torch.float64)

    def loss(x: Tensor, weights: Tensor) -> Tensor:
        return (ops.weighted_mean(x, weights) * torch.arange(4)).square().sum()

    def plain(x: Tensor, weights: Tensor) -> Tensor:
        return ((weights / weights.sum()) @ x * torch.arange(4)).square().sum()

    gradient = torch.func.grad(plain, argnums=1)
    torch.testing.assert_close(torch.func.grad(loss, argnums=1)(x[0], weights), gradient(x[0], weights))
    batched = torch.func.vmap(torch.func.grad(loss, argnums=1), (0, None))(x, weights)
    torch.testing.assert_close(batched[1], gradient(x[1], weights))
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x[0], weights), plain(x[0], weights))
