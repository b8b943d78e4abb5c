"""The CUDA kernel of the algebra behind primitives, run on the CPU, against its expressions in torch."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from mmfl_fast.kernels.one_step import algebra

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# In the order of their codes in csrc/algebra/algebra_cuda.h.
STEPS = ("cosine", "angular", "sq_distance", "alignment")


def expression(step: str, products: torch.Tensor, row_mean: torch.Tensor, threshold: float) -> torch.Tensor:
    if step == "sq_distance":
        return algebra.sq_distance(products)
    if step == "alignment":
        return algebra.alignment(products, threshold).clamp(max=1.0)
    found: torch.Tensor = getattr(algebra, step)(products, row_mean, threshold)
    return found


@pytest.fixture(scope="module")
def run_algebra(compile_kernels: Any) -> Any:
    return compile_kernels("algebra", sanitized=True)


def products_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With a row without direction, two equal ones, opposite ones and one that is not finite."""
    rows = torch.randn(count, 40).double()
    if count > 5:
        rows[1], rows[2], rows[3] = 0, rows[4], -rows[4]
        rows[5] = torch.nan
    return rows @ rows.T, rows.mean(dim=1).nan_to_num()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("count", [1, 2, 16, 17, 64])
@pytest.mark.parametrize("step", STEPS)
def test_an_element_is_that_of_the_expression(
    run_algebra: Any, step: str, count: int, backward: bool
) -> None:
    products, row_mean = products_of(count)
    threshold = 1e-9
    found = run_algebra(
        STEPS.index(step),
        int(backward),
        count,
        threshold,
        row_mean.numpy().tobytes(),
        products.numpy().tobytes(),
    )
    expected = expression(step, products, row_mean, threshold)
    found = torch.from_numpy(found.copy()).reshape(count, count)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13, equal_nan=True)
    finite = expected.isfinite().diagonal()
    exact = 0.0 if step == "sq_distance" else 1.0
    assert (found.diagonal()[finite] == exact).all()
