from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.kernels.backend import use_backend

WORKED_WEIGHTS = [0.5, 0.3, 0.2]


def worked_operators() -> Tensor:
    """Three operators with squared distances 1 and 2 from the first."""
    operators = torch.zeros(3, 2, 2, dtype=torch.float64)
    operators[1, 0, 0] = 1
    operators[2, 1, 1] = 2**0.5
    return operators


def orthonormal(count: int, rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(count, rows, columns, dtype=torch.float64))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_projection_distance(dtype: torch.dtype, backend: str) -> None:
    operators = torch.randn(5, 7, 11).to(dtype)
    difference = operators.double()[:, None] - operators.double()[None]
    exact = torch.einsum("ijmn,ijmn->ij", difference, difference)
    with use_backend(backend):
        distance = ops.projection_distance(operators)
    torch.testing.assert_close(distance, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 3, 1), (4, 9, 2), (3, 20, 13)])
def test_subspace_distance(count: int, rows: int, columns: int, dtype: torch.dtype, backend: str) -> None:
    bases = orthonormal(count, rows, columns).to(dtype)
    projectors = bases.double() @ bases.double().mT
    exact = (projectors[:, None] - projectors[None]).square().sum(dim=(2, 3))
    with use_backend(backend):
        distance = ops.subspace_distance(bases)
    torch.testing.assert_close(distance, exact, rtol=1e-10, atol=1e-10)
    assert (distance.diagonal() == 0).all()
    assert torch.equal(distance, distance.T)


def test_subspace_distance_does_not_depend_on_the_basis() -> None:
    bases = orthonormal(1, 12, 4)[0]
    rotated = bases @ orthonormal(1, 4, 4)[0]
    distance = ops.subspace_distance(torch.stack([bases, rotated]))
    assert distance[0, 1] <= 1e-12


def test_nearly_equal_subspaces() -> None:
    base = orthonormal(1, 50, 5)[0]
    near = torch.linalg.qr(base + 1e-4 * torch.randn(50, 5, dtype=torch.float64))[0]
    exact = (base @ base.T - near @ near.T).square().sum()
    distance = ops.subspace_distance(torch.stack([base, near]))
    torch.testing.assert_close(distance[0, 1], exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bases", [torch.ones(3, 2), torch.ones(0, 3, 2)])
def test_wrong_bases(bases: Tensor) -> None:
    with pytest.raises(ValueError, match=r"bases must have shape \(K, n, t\)"):
        ops.subspace_distance(bases)


def test_worked_value_of_the_literal_formula() -> None:
    shares = ops.consensus_matrix(worked_operators(), WORKED_WEIGHTS, scale=1.0)
    expected = torch.tensor([0.784399, 0.173138, 0.042463], dtype=torch.float64)
    torch.testing.assert_close(shares[0], expected, rtol=0, atol=1e-6)


def test_median_scale_is_the_median_of_different_clients() -> None:
    # Squared distances 1, 2 and 3.
    by_median = ops.consensus_matrix(worked_operators(), WORKED_WEIGHTS)
    torch.testing.assert_close(by_median, ops.consensus_matrix(worked_operators(), WORKED_WEIGHTS, scale=2.0))
    # An even number of pairs: the mean of the middle two, here of 4 and 9.
    points = torch.tensor([0.0, 1.0, 3.0, 13.0]).reshape(4, 1, 1)
    shares = ops.consensus_matrix(points, torch.ones(4))
    torch.testing.assert_close(shares, ops.consensus_matrix(points, torch.ones(4), scale=(9 + 100) / 2))


def test_the_literal_formula_underflows_and_the_default_does_not() -> None:
    operators = orthonormal(4, 512, 384).mT
    literal = ops.consensus_matrix(operators, torch.ones(4), scale=1.0)
    torch.testing.assert_close(literal, torch.eye(4, dtype=torch.float64))
    default = ops.consensus_matrix(operators, torch.ones(4))
    assert (default > 0.1).all()


@pytest.mark.parametrize("scale", ["median", 1.0, 3])
def test_rows_sum_to_one_and_weight_zero_gives_nothing(scale: Any) -> None:
    shares = ops.consensus_matrix(torch.randn(4, 3, 5), [1.0, 0.0, 2.0, 3.0], scale=scale)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert (shares[:, 1] == 0).all()
    assert (shares[:, [0, 2, 3]] > 0).all()


def test_degenerate_federations() -> None:
    assert torch.equal(
        ops.consensus_matrix(torch.randn(1, 2, 2), [0.3]), torch.ones(1, 1, dtype=torch.float64)
    )
    same = torch.randn(1, 2, 2).expand(3, 2, 2)
    expected = torch.tensor(WORKED_WEIGHTS, dtype=torch.float64).expand(3, 3)
    torch.testing.assert_close(ops.consensus_matrix(same, WORKED_WEIGHTS), expected)


@pytest.mark.parametrize("scale", ["median", 1.0])
def test_a_broken_client_is_as_absent(scale: Any) -> None:
    operators = torch.randn(4, 2, 3)
    broken = operators.clone()
    broken[2, 0, 1] = torch.nan
    shares = ops.consensus_matrix(broken, [1.0, 2.0, 3.0, 4.0], scale=scale)
    good = [0, 1, 3]
    expected = ops.consensus_matrix(operators[good], [1.0, 2.0, 4.0], scale=scale)
    torch.testing.assert_close(shares[good][:, good], expected, rtol=1e-6, atol=1e-6)
    assert shares[2].isnan().all()
    assert shares[:, 2].isnan().all()


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, float("nan"), float("inf"), "mean", None, True])
def test_wrong_scale(scale: Any) -> None:
    with pytest.raises(ValueError, match='scale must be "median" or a positive finite number'):
        ops.consensus_matrix(torch.randn(3, 2, 2), [1.0, 1.0, 1.0], scale=scale)


def test_scale_of_numpy_is_a_number() -> None:
    operators, weights = torch.randn(3, 2, 2), [1.0, 1.0, 1.0]
    shares = ops.consensus_matrix(operators, weights, scale=np.float32(2))
    assert torch.equal(shares, ops.consensus_matrix(operators, weights, scale=2.0))


@pytest.mark.parametrize(
    "op",
    [
        ops.projection_distance,
        lambda operators: ops.consensus_matrix(operators, [1.0]),
        lambda operators: ops.consensus_mix(operators, [[1.0]]),
    ],
)
def test_wrong_operators_are_named(op: Any) -> None:
    with pytest.raises(TypeError, match="operators must be float64"):
        op(torch.ones(1, 2, 2, dtype=torch.int64))


def test_wrong_weights() -> None:
    with pytest.raises(ValueError, match=r"weights\[2\] is -1.0"):
        ops.consensus_matrix(torch.randn(3, 2, 2), [1.0, 1.0, -1.0])


def test_consensus_mix_takes_the_others_operators() -> None:
    operators, shares = torch.randn(3, 2, 4), torch.rand(3, 3)
    torch.testing.assert_close(
        ops.consensus_mix(operators, shares), torch.einsum("ij,jmn->imn", shares, operators)
    )
    by_name = ops.consensus_mix([{"projection": operator} for operator in operators], shares)
    torch.testing.assert_close(by_name[1]["projection"], (shares[1] @ operators.reshape(3, 8)).reshape(2, 4))
    with pytest.raises(ValueError, match=r"matrix must have shape \(3, 3\); got \(2, 3\)"):
        ops.consensus_mix(operators, shares[:2])


@pytest.mark.parametrize("scale", ["median", 1.0])
def test_gradients(scale: Any) -> None:
    operators = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda operators, weights: ops.consensus_matrix(operators, weights, scale=scale), (operators, weights)
    )
    assert torch.autograd.gradcheck(ops.projection_distance, operators)
    assert torch.autograd.gradcheck(ops.subspace_distance, operators)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
def test_transforms() -> None:
    operators = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    weights = torch.rand(4, dtype=torch.float64)
    upstream = torch.randn(4, 4, dtype=torch.float64)

    def loss(operators: Tensor) -> Tensor:
        shares = ops.consensus_matrix(operators, weights)
        return (ops.consensus_mix(operators, shares).square().sum() * shares * upstream).sum()

    leaf = operators[1].clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(operators)[1], leaf.grad)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf), loss(leaf))
