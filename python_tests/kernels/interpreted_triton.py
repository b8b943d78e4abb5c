"""Index and mask logic of the Triton kernels on CPU tensors, with TRITON_INTERPRET=1.

It says nothing about precision: the interpreter multiplies in float32 or float64 whatever is asked. The name
keeps this file out of the usual run; test_triton_interpreter.py runs it in a process of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmfl_fast.kernels.cross_gram_sq import reference as cross_gram_sq_reference
from mmfl_fast.kernels.cross_gram_sq import triton as cross_gram_sq_triton
from mmfl_fast.kernels.gram import reference as gram_reference
from mmfl_fast.kernels.gram import triton as gram_triton
from mmfl_fast.kernels.mix import reference as mix_reference
from mmfl_fast.kernels.mix import triton as mix_triton
from mmfl_fast.kernels.prototype_loss import reference as prototype_loss_reference
from mmfl_fast.kernels.prototype_loss import triton as prototype_loss_triton

# The interpreter computes with NumPy, which warns of what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [
    "contiguous", "slice", "every second", "transposed", "expanded", "two strides", "segments", "two stacks",
    "state dicts",
]  # fmt: skip
# All layouts in one dtype, the other dtypes in two of them.
FORMS = [
    *((layout, torch.float32) for layout in LAYOUTS),
    *(
        (layout, dtype)
        for layout in ("contiguous", "state dicts")
        for dtype in DTYPES
        if dtype != torch.float32
    ),
]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def assert_close(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Within rounding of the largest value, with the same elements finite."""
    largest = float(exact.detach().double().nan_to_num(0, 0, 0).abs().max()) if exact.numel() > 0 else 0.0
    torch.testing.assert_close(
        ours.double(),
        exact.detach().double(),
        rtol=TOLERANCE[dtype],
        atol=TOLERANCE[dtype] * largest + 1e-12,
        equal_nan=True,
    )


@pytest.mark.parametrize(("layout", "dtype"), FORMS, ids=str)
def test_gram(layout: str, dtype: torch.dtype, arrange: Any) -> None:
    values = (torch.randn(5, 83) + torch.randn(83) + 3).to(dtype)
    rows = arrange(layout, values)
    exact_blocks = [block.double() for block in rows.blocks]
    lines = rows.blocks[: rows.segments]
    row = [torch.randn(block.shape[1:] if rows.stacked else block.shape).to(dtype) for block in lines]
    for origin, mean_origin in (([], False), ([], True), (row, False)):
        for centre_rows in (False, True):
            ours, means = gram_triton.gram(*rows.arguments, origin, mean_origin, centre_rows, False)
            exact, exact_means = gram_reference.gram(
                exact_blocks,
                rows.segments,
                rows.stacked,
                [part.double() for part in origin],
                mean_origin,
                centre_rows,
                False,
            )
            assert_close(ours, exact, torch.float32 if dtype != torch.float64 else dtype)
            torch.testing.assert_close(means, exact_means, rtol=1e-5, atol=1e-5)
            assert torch.equal(ours, ours.mT)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 15), (16, 33), (17, 16), (33, 70), (65, 33)])
def test_gram_around_the_tiles(count: int, columns: int) -> None:
    x = torch.randn(count, columns)
    for mean_origin, centre_rows in ((False, False), (True, True)):
        ours, means = gram_triton.gram([x], 1, True, [], mean_origin, centre_rows, False)
        exact, exact_means = gram_reference.gram([x.double()], 1, True, [], mean_origin, centre_rows, False)
        assert_close(ours, exact, torch.float32)
        torch.testing.assert_close(means, exact_means, rtol=1e-4, atol=1e-5)


def test_gram_of_mixed_dtypes_and_an_empty_segment() -> None:
    blocks = [torch.randn(3, 20), torch.empty(3, 0), torch.randn(3, 9).half(), torch.randn(3, 4).double()]
    ours, means = gram_triton.gram(blocks, 4, True, [], True, True, False)
    exact, exact_means = gram_reference.gram(blocks, 4, True, [], True, True, False)
    assert_close(ours, exact, torch.float64)
    torch.testing.assert_close(means, exact_means)
    ours, means = gram_triton.gram([torch.empty(3, 0)], 1, True, [], True, True, False)
    assert (ours == 0).all()
    assert (means == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("count", [6, 70])
def test_gram_of_rows_that_are_not_finite(count: int, value: float) -> None:
    # The first, the middle and the last row are those that the common vector is made of.
    x = torch.randn(count, 50)
    x[0, 7] = x[count // 2, 7] = x[count - 1, 30] = value
    ours, means = gram_triton.gram([x], 1, True, [], True, True, False)
    exact, exact_means = gram_reference.gram([x.double()], 1, True, [], True, True, False)
    assert_close(ours, exact, torch.float32)
    torch.testing.assert_close(means, exact_means, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert ours[1, 1].isfinite()


def test_gram_of_equal_rows() -> None:
    x = torch.randn(1, 77).expand(40, 77)
    assert (gram_triton.gram([x], 1, True, [], True, False, False)[0] == 0).all()


@pytest.mark.parametrize(("layout", "dtype"), FORMS, ids=str)
def test_mix(layout: str, dtype: torch.dtype, arrange: Any) -> None:
    rows = arrange(layout, (torch.randn(5, 83) + torch.randn(83)).to(dtype))
    exact_blocks = [block.double() for block in rows.blocks]
    for outputs in (1, 3, 20):
        matrix = torch.randn(outputs, 5, dtype=torch.float64)
        matrix[:, 3] = 0
        offset = torch.randn(5, dtype=torch.float64)
        for row_offset, centre in ((None, False), (offset, True)):
            ours = mix_triton.mix(*rows.arguments, matrix, row_offset, centre)
            exact = mix_reference.mix(exact_blocks, rows.segments, rows.stacked, matrix, row_offset, centre)
            for part, exact_part in zip(ours, exact, strict=True):
                assert part.dtype == dtype
                assert_close(part, exact_part, dtype)


@pytest.mark.parametrize(
    ("outputs", "count", "columns"), [(1, 130, 3), (4, 64, 129), (17, 65, 65), (65, 70, 130)]
)
def test_mix_around_the_tiles(outputs: int, count: int, columns: int) -> None:
    x, matrix = torch.randn(count, columns), torch.randn(outputs, count, dtype=torch.float64)
    assert_close(mix_triton.mix([x], 1, True, matrix, None, False)[0], matrix @ x.double(), torch.float32)
    centred = x.double() - x.double().mean(dim=0)
    assert_close(mix_triton.mix([x], 1, True, matrix, None, True)[0], matrix @ centred, torch.float32)


@pytest.mark.parametrize("outputs", [2, 20])
def test_mix_reads_no_row_of_weight_zero(outputs: int) -> None:
    x = torch.randn(6, 70)
    x[0, 3] = x[5, 69] = torch.nan
    matrix = torch.rand(outputs, 6, dtype=torch.float64)
    matrix[:, 5] = 0
    matrix[1:, 0] = 0
    (ours,) = mix_triton.mix([x], 1, True, matrix, None, False)
    exact = matrix @ x.nan_to_num().double()
    exact[0, 3] = torch.nan
    assert_close(ours, exact, torch.float32)


def test_mix_of_an_empty_segment() -> None:
    matrix = torch.ones(2, 3, dtype=torch.float64)
    x, nothing = torch.randn(3, 4), torch.empty(3, 0)
    ours = mix_triton.mix([nothing, x], 2, True, matrix, None, False)
    assert ours[0].shape == (2, 0)
    assert_close(ours[1], matrix @ x.double(), torch.float32)
    assert mix_triton.mix([x], 1, True, matrix[:0], None, False)[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("rows", "dtype"), [(1, torch.float32), (40, torch.float32), *((5, dtype) for dtype in DTYPES)], ids=str
)
def test_cross_gram_sq(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_gram_sq_triton, "_STRIP_BYTES", 60_000)
    blocks = [
        torch.randn(2, 3, rows, 7).to(dtype),
        torch.randn(2, 1, 20, rows).transpose(2, 3).to(dtype),
        torch.randn(2, 2, rows, 80).to(dtype)[..., ::2],
    ]
    blocks[0][1, 2, rows // 2, 1] = torch.nan
    blocks[2][0, 0, 0] = 0
    exact_blocks = [block.double() for block in blocks]
    for mean_columns in (False, True):
        for normalise in (False, True):
            ours = cross_gram_sq_triton.cross_gram_sq(blocks, mean_columns, normalise, False)
            exact = cross_gram_sq_reference.cross_gram_sq(exact_blocks, mean_columns, normalise, False)
            assert_close(ours, exact, torch.float64 if dtype == torch.float64 else torch.float32)


PROTOTYPE_SHAPES = [
    (1, 1, 1, 1, 1, 0),
    (1, 5, 7, 3, 1, 0),
    (3, 70, 40, 65, 1, 3),
    (2, 17, 33, 20, 2, 1),
    (3, 65, 10, 5, 3, 3),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("clients", "rows", "dims", "classes", "groups", "masks"), PROTOTYPE_SHAPES)
def test_prototype_loss(
    clients: int,
    rows: int,
    dims: int,
    classes: int,
    groups: int,
    masks: int,
    normalise: bool,
    dtype: torch.dtype,
) -> None:
    features = torch.randn(clients, dims, rows).transpose(1, 2).to(dtype)
    prototypes = torch.randn(groups, classes, dims).to(dtype)
    labels = torch.randint(0, classes, (rows, clients)).T
    mask = torch.rand(masks, classes) > 0.3 if masks else None
    if mask is not None and groups == masks:
        # Whatever stands for a class that takes no part must not be seen.
        prototypes[~mask] = torch.nan
    temperature = 0.1 if normalise else 3.0
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.randn(rows, dtype=compute).expand(clients, rows).clone()
    if rows > 3:
        labels[:, 1] = -100
        upstream[:, 2] = 0
        features[0, 2, 1] = torch.nan
    others = (labels, prototypes, mask, temperature, normalise, False)
    loss, log_sum = prototype_loss_triton.prototype_loss(features, *others)
    assert loss.dtype == compute
    exact_prototypes = prototypes.double().requires_grad_()
    options = (labels, exact_prototypes, mask, temperature, normalise, False)
    exact = prototype_loss_reference.prototype_loss(features.double(), *options)
    assert_close(loss, exact, compute)
    ours = prototype_loss_triton.prototype_loss_backward(upstream, loss, log_sum, features, *others)
    # A row without upstream gradient contributes nothing, be it NaN.
    exact_features = torch.where(upstream[..., None] == 0, 1.0, features.double()).requires_grad_()
    exact = prototype_loss_reference.prototype_loss(exact_features, *options)
    exact_gradients = torch.autograd.grad((exact * upstream).sum(), (exact_features, exact_prototypes))
    for gradient, exact_gradient in zip(ours, exact_gradients, strict=True):
        assert gradient.dtype == dtype
        assert_close(gradient, exact_gradient, dtype)


def test_prototype_loss_adds_splits_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototype_loss_triton, "_SHORTEST_SPLIT", 1)
    features, prototypes = torch.randn(2, 150, 9), torch.randn(1, 4, 9)
    others = (torch.randint(0, 4, (2, 150)), prototypes, None, 0.5, True, False)
    loss, log_sum = prototype_loss_triton.prototype_loss(features, *others)
    split = prototype_loss_triton.prototype_loss_backward(
        torch.ones(2, 150), loss, log_sum, features, *others
    )
    monkeypatch.setattr(prototype_loss_triton, "_PROGRAMS", 1)
    whole = prototype_loss_triton.prototype_loss_backward(
        torch.ones(2, 150), loss, log_sum, features, *others
    )
    assert_close(split[1], whole[1], torch.float32)
    assert torch.equal(split[0], whole[0])


def test_prototype_loss_of_large_logits_and_one_certain_class() -> None:
    features, prototypes = torch.tensor([[[1e4, 0.0], [0.0, 7.0]]]), torch.eye(2)[None]
    others = (torch.tensor([[0, 1]]), prototypes, None, 1.0, False, False)
    loss, log_sum = prototype_loss_triton.prototype_loss(features, *others)
    exact = torch.tensor([[0.0, 9.1147e-4]])
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)
    gradient, _ = prototype_loss_triton.prototype_loss_backward(
        torch.ones(1, 2), loss, log_sum, features, *others
    )
    torch.testing.assert_close(gradient[0, 1], torch.tensor([9.1105e-4, -9.1105e-4]), rtol=1e-3, atol=0)
    assert (gradient[0, 0] == 0).all()


def test_prototype_loss_of_a_probability_next_to_one() -> None:
    features, labels = torch.eye(2)[None], torch.tensor([[0, 1]])
    loss, log_sum = prototype_loss_triton.prototype_loss(
        features, labels, features, None, 1 / 12, True, False
    )
    exact = torch.tensor(-12.0, dtype=torch.float64).exp().log1p().float().expand(1, 2)
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_sum, exact, rtol=1e-6, atol=0)


def test_prototype_loss_of_large_logits_that_are_equal() -> None:
    features, prototypes = torch.tensor([[[1e4, 0.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    others = (torch.tensor([[0]]), prototypes, None, 1.0, False, False)
    loss, log_sum = prototype_loss_triton.prototype_loss(features, *others)
    gradient, _ = prototype_loss_triton.prototype_loss_backward(
        torch.ones(1, 1), loss, log_sum, features, *others
    )
    torch.testing.assert_close(gradient, torch.tensor([[[0.0, 0.5]]]))


def test_prototype_loss_of_wrong_labels_is_nan_without_a_gradient() -> None:
    features, prototypes = torch.randn(1, 4, 3), torch.randn(1, 5, 3)
    others = (torch.tensor([[5, 0, -1, -100]]), prototypes, None, 1.0, True, False)
    loss, log_sum = prototype_loss_triton.prototype_loss(features, *others)
    assert loss.isnan().tolist() == [[True, False, True, False]]
    gradients = prototype_loss_triton.prototype_loss_backward(
        torch.ones(1, 4), loss, log_sum, features, *others
    )
    assert (gradients[0][0, [0, 2, 3]] == 0).all()
    assert gradients[1].isfinite().all()


def test_prototype_loss_of_ignored_rows_alone_is_zero() -> None:
    features, prototypes = torch.randn(2, 3, 4), torch.randn(1, 2, 4)
    others = (torch.full((2, 3), -100), prototypes, torch.zeros(1, 2, dtype=torch.bool), 0.1, True, False)
    loss, log_sum = prototype_loss_triton.prototype_loss(features, *others)
    assert (loss == 0).all()
    for gradient in prototype_loss_triton.prototype_loss_backward(
        torch.ones(2, 3), loss, log_sum, features, *others
    ):
        assert (gradient == 0).all()


def test_a_table_longer_than_one_launch_can_write() -> None:
    rows = [torch.randn(3) for _ in range(300)]
    matrix = torch.rand(1, 300, dtype=torch.float64)
    (ours,) = mix_triton.mix(rows, 1, False, matrix, None, False)
    assert_close(ours, matrix @ torch.stack(rows).double(), torch.float32)
