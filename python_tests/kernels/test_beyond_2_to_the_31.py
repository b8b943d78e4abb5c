"""Elements further apart than 2^31, and more of them than that.

Nothing between the rows is touched, so a test takes a few pages of memory.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.gram import gram
from mmfl_fast.kernels.mix import mix
from mmfl_fast.kernels.prototype_loss import prototype_loss

FAR = 2**31 + 8


@pytest.fixture
def far_apart(tmp_path: Path) -> Tensor:
    """Two bfloat16 matrices [2, 3, 8] with every row FAR elements behind the last, in a file of holes."""
    elements = 3 * FAR
    file = tmp_path / "holes"
    with file.open("wb") as opened:
        opened.truncate(2 * elements)
    memory = torch.from_file(str(file), shared=True, size=elements, dtype=torch.bfloat16)
    return memory.as_strided((2, 3, 8), (8, FAR, 1)).copy_(torch.randn(2, 3, 8))


def test_gram(far_apart: Tensor) -> None:
    close = far_apart.contiguous()
    assert torch.equal(
        gram([far_apart[0]], 1, True, [], True, True)[0], gram([close[0]], 1, True, [], True, True)[0]
    )


def test_gram_of_long_rows() -> None:
    ones = torch.ones((), dtype=torch.bfloat16).expand(2, FAR)
    products, _ = gram([ones], 1, True, [], False, False)
    assert torch.equal(products, torch.full((2, 2), FAR, dtype=torch.float64))


def test_mix(far_apart: Tensor) -> None:
    matrix = torch.randn(2, 3, dtype=torch.float64)
    far = mix([far_apart[0]], 1, True, matrix, None, True)[0]
    assert torch.equal(far, mix([far_apart[0].contiguous()], 1, True, matrix, None, True)[0])


def test_cross_gram_sq(far_apart: Tensor) -> None:
    options = {"mean_columns": True, "normalise_rows": True}
    assert torch.equal(
        cross_gram_sq([far_apart], **options), cross_gram_sq([far_apart.contiguous()], **options)
    )


def test_prototype_loss(far_apart: Tensor) -> None:
    labels = torch.arange(3).expand(2, 3)
    results = []
    for rows in (far_apart, far_apart.contiguous()):
        features = rows.detach().requires_grad_()
        prototypes = rows.detach().flip(0).requires_grad_()
        loss = prototype_loss(features, labels, prototypes, None, 0.1, True)
        gradients = torch.autograd.grad(loss.sum(), (features, prototypes))
        results.append((loss, *gradients))
    assert all(map(torch.equal, *results))
