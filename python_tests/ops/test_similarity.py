from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.kernels.backend import use_backend

BACKENDS = ["native", "reference"]


def centred(x: Tensor) -> np.ndarray[Any, Any]:
    rows: np.ndarray[Any, Any] = x.double().numpy()
    return rows - rows.mean(axis=0)


def exact_cosine(rows: np.ndarray[Any, Any]) -> Tensor:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(unit @ unit.T)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (3, 101), (16, 1025), (33, 513)])
def test_against_numpy(rows: int, columns: int, dtype: torch.dtype, backend: str) -> None:
    x = (torch.randn(rows, columns) + torch.randn(columns)).to(dtype)
    exact = torch.from_numpy(np.corrcoef(centred(x)))
    cosine = exact_cosine(centred(x))
    distance = torch.cdist(x.double(), x.double()) ** 2
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    with use_backend(backend):
        torch.testing.assert_close(ops.pearson_similarity(x), exact, rtol=0, atol=tolerance)
        torch.testing.assert_close(ops.cosine_similarity(x), cosine, rtol=0, atol=tolerance)
        angular, plain = ops.angular_similarity(x), 1 - torch.arccos(exact.clamp(-1, 1)) / math.pi
        torch.testing.assert_close(angular.cos(), plain.cos(), rtol=0, atol=2 * math.sqrt(tolerance))
        torch.testing.assert_close(
            ops.pairwise_sq_distance(x), distance, rtol=0, atol=tolerance * float(distance.max())
        )


@pytest.mark.parametrize("origin", ["mean", None, "row"])
def test_origins(origin: str | None) -> None:
    x, row = torch.randn(5, 70), torch.randn(70)
    shifted = {"mean": centred(x), None: x.double().numpy(), "row": (x.double() - row.double()).numpy()}[
        origin
    ]
    value = row if origin == "row" else origin
    torch.testing.assert_close(
        ops.cosine_similarity(x, origin=value), exact_cosine(shifted), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        ops.pearson_similarity(x, origin=value), torch.from_numpy(np.corrcoef(shifted)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("relative", [1e-4, 1e-6])
def test_models_that_differ_by_little(relative: float) -> None:
    x = torch.randn(4001) + relative * torch.randn(6, 4001)
    exact = torch.from_numpy(np.corrcoef(centred(x)))
    torch.testing.assert_close(ops.pearson_similarity(x), exact, rtol=0, atol=2e-6)


def test_worked_values_of_angular_similarity() -> None:
    same, orthogonal = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    rows = torch.stack([same, 3 * same, orthogonal, -2 * same])
    expected = torch.tensor(
        [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0.5], [0, 0, 0.5, 1]], dtype=torch.float64
    )
    torch.testing.assert_close(ops.angular_similarity(rows, origin=None, kind="cosine"), expected)


@pytest.mark.parametrize("columns", [7, 1001])
def test_equal_and_opposite_rows_are_exact(columns: int) -> None:
    row = torch.randn(columns, dtype=torch.float64)
    rows = torch.stack([row, row, -row])
    signs = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert torch.equal(ops.cosine_similarity(rows, origin=None), torch.outer(signs, signs))
    angular = ops.angular_similarity(rows, origin=None, kind="cosine")
    assert torch.equal(angular, (torch.outer(signs, signs) + 1) / 2)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_norms_at_the_ends_of_the_range(scale: float) -> None:
    x = torch.randn(4, 20, dtype=torch.float64)
    scaled = x.clone()
    scaled[1] *= scale
    torch.testing.assert_close(
        ops.cosine_similarity(scaled, origin=None), ops.cosine_similarity(x, origin=None)
    )


SIMILARITIES = [ops.pearson_similarity, ops.cosine_similarity, ops.angular_similarity]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_diagonal_range_and_symmetry(similarity: Any, backend: str) -> None:
    x = torch.randn(9, 300)
    x[3] = 2 * x[1] + 1e-6 * torch.randn(300)
    with use_backend(backend):
        result = similarity(x)
    assert (result.diagonal() == 1).all()
    assert torch.equal(result, result.T)
    assert result.min() >= (0 if similarity is ops.angular_similarity else -1)
    assert result.max() <= 1
    distance = ops.pairwise_sq_distance(x)
    assert (distance.diagonal() == 0).all()
    assert (distance >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_rows_without_direction(rows: int, similarity: Any, backend: str) -> None:
    x = torch.randn(1, 400).expand(rows, 400).clone().requires_grad_()
    with use_backend(backend):
        result = similarity(x)
    other = 0.5 if similarity is ops.angular_similarity else 0.0
    expected = torch.full((rows, rows), other, dtype=torch.float64).fill_diagonal_(1)
    assert torch.equal(result, expected)
    (result * torch.randn(rows, rows)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_constant_rows_have_no_pearson_direction(dtype: torch.dtype, backend: str) -> None:
    x = torch.randn(4, 999).to(dtype)
    x[1] = 0.1
    x[2] = 12345.678
    with use_backend(backend):
        result = ops.pearson_similarity(x, origin=None)
    assert torch.equal(result[1:3], torch.eye(4, dtype=torch.float64)[1:3])
    assert result[0, 3] != 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", [*SIMILARITIES, ops.pairwise_sq_distance])
def test_non_finite_rows_spoil_only_themselves(similarity: Any, backend: str) -> None:
    x = torch.randn(5, 50)
    good = [0, 1, 3]
    with use_backend(backend):
        clean = similarity(x[good])
        x[2, 3], x[4, 0] = torch.nan, torch.inf
        x.requires_grad_()
        result = similarity(x)
    for bad in (2, 4):
        assert result[bad].isnan().all()
        assert result[:, bad].isnan().all()
    torch.testing.assert_close(result.detach()[good][:, good], clean, rtol=1e-5, atol=1e-5)
    result.nansum().backward()
    assert x.grad is not None
    assert x.grad[good].isfinite().all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("origin", ["mean", None])
def test_gradients(similarity: Any, origin: str | None) -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: similarity(x, origin=origin), x)
    assert torch.autograd.gradgradcheck(lambda x: similarity(x, origin=origin), x)


def test_gradients_of_distances() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.pairwise_sq_distance, x)


@pytest.mark.parametrize("kind", ["pearson", "cosine"])
def test_gradients_of_parallel_rows_are_finite(kind: str) -> None:
    x = torch.randn(1, 30)
    x = torch.cat([x, 2 * x, -x, torch.randn(2, 30)]).requires_grad_()
    (ops.angular_similarity(x, origin=None, kind=kind) * torch.randn(5, 5)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[3:].abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("similarity", [*SIMILARITIES, ops.pairwise_sq_distance, ops.gram])
def test_transforms(similarity: Any) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    upstream = torch.randn(4, 4, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return (similarity(x) * upstream).sum()

    each = torch.stack([torch.func.grad(loss)(sample) for sample in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), each)
    torch.testing.assert_close(torch.func.vmap(similarity)(x)[1], similarity(x[1]))
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf = x[0].clone().requires_grad_()
    compiled(leaf).backward()
    torch.testing.assert_close(leaf.grad, each[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
def test_compiled_state_dicts() -> None:
    dicts = [{"a": torch.randn(3), "b": torch.randn(2, 2)} for _ in range(3)]
    torch.compiler.reset()
    compiled = torch.compile(lambda rows: ops.angular_similarity(rows), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(dicts), ops.angular_similarity(dicts))


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match='kind must be "pearson" or "cosine"; got \'spearman\''):
        ops.angular_similarity(torch.randn(3, 4), kind="spearman")  # type: ignore[arg-type]
