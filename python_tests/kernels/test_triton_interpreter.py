"""Index and mask logic of the Triton kernels, run by Triton's interpreter on CPU tensors.

It says nothing about precision: the interpreter multiplies in float32 or float64 whatever is asked. It has to
be chosen before Triton is imported, so these tests run themselves again in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which is not installed")

# The interpreter computes with NumPy, which warns of what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [
    "contiguous", "slice", "every second", "transposed", "expanded", "two strides", "segments", "two stacks",
    "state dicts",
]  # fmt: skip
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
NO_OFFSET = torch.empty(0, dtype=torch.float64)


@pytest.mark.skipif(INTERPRETED, reason="is that process")
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-P", "-m", "pytest", str(Path(__file__)), "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


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


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gram(layout: str, dtype: torch.dtype, arrange: Any) -> None:
    from mmfl_fast.kernels.gram import reference, triton

    values = (torch.randn(5, 83) + torch.randn(83) + 3).to(dtype)
    rows = arrange(layout, values)
    exact_blocks = [block.double() for block in rows.blocks]
    lines = rows.blocks[: rows.segments]
    row = [torch.randn(block.shape[1:] if rows.stacked else block.shape).to(dtype) for block in lines]
    for origin, mean_origin in (([], False), ([], True), (row, False)):
        for centre_rows in (False, True):
            ours, means = triton.gram(*rows.arguments, origin, mean_origin, centre_rows, False)
            exact, exact_means = reference.gram(
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


@interpreted
@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 15), (16, 33), (17, 16), (33, 70), (65, 33), (130, 5)]
)
def test_gram_around_the_tiles(count: int, columns: int) -> None:
    from mmfl_fast.kernels.gram import reference, triton

    x = torch.randn(count, columns)
    for mean_origin, centre_rows in ((False, False), (True, True)):
        ours, means = triton.gram([x], 1, True, [], mean_origin, centre_rows, False)
        exact, exact_means = reference.gram([x.double()], 1, True, [], mean_origin, centre_rows, False)
        assert_close(ours, exact, torch.float32)
        torch.testing.assert_close(means, exact_means, rtol=1e-4, atol=1e-5)


@interpreted
def test_gram_of_mixed_dtypes_and_an_empty_segment() -> None:
    from mmfl_fast.kernels.gram import reference, triton

    blocks = [torch.randn(3, 20), torch.empty(3, 0), torch.randn(3, 9).half(), torch.randn(3, 4).double()]
    ours, means = triton.gram(blocks, 4, True, [], True, True, False)
    exact, exact_means = reference.gram(blocks, 4, True, [], True, True, False)
    assert_close(ours, exact, torch.float64)
    torch.testing.assert_close(means, exact_means)
    ours, means = triton.gram([torch.empty(3, 0)], 1, True, [], True, True, False)
    assert (ours == 0).all()
    assert (means == 0).all()


@interpreted
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("count", [6, 70])
def test_gram_of_rows_that_are_not_finite(count: int, value: float) -> None:
    from mmfl_fast.kernels.gram import reference, triton

    # The first, the middle and the last row are those that the common vector is made of.
    x = torch.randn(count, 50)
    x[0, 7] = x[count // 2, 7] = x[count - 1, 30] = value
    ours, means = triton.gram([x], 1, True, [], True, True, False)
    exact, exact_means = reference.gram([x.double()], 1, True, [], True, True, False)
    assert_close(ours, exact, torch.float32)
    torch.testing.assert_close(means, exact_means, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert ours[1, 1].isfinite()


@interpreted
def test_gram_of_equal_rows() -> None:
    from mmfl_fast.kernels.gram import triton

    x = torch.randn(1, 77).expand(40, 77)
    assert (triton.gram([x], 1, True, [], True, False, False)[0] == 0).all()


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mix(layout: str, dtype: torch.dtype, arrange: Any) -> None:
    from mmfl_fast.kernels.mix import reference, triton

    rows = arrange(layout, (torch.randn(5, 83) + torch.randn(83)).to(dtype))
    exact_blocks = [block.double() for block in rows.blocks]
    for outputs in (1, 3, 20):
        matrix = torch.randn(outputs, 5, dtype=torch.float64)
        matrix[:, 3] = 0
        offset = torch.randn(5, dtype=torch.float64)
        for row_offset, centre in ((NO_OFFSET, False), (offset, True)):
            ours = triton.mix(*rows.arguments, matrix, row_offset, centre)
            exact = reference.mix(exact_blocks, rows.segments, rows.stacked, matrix, row_offset, centre)
            for part, exact_part in zip(ours, exact, strict=True):
                assert part.dtype == dtype
                assert_close(part, exact_part, dtype)


@interpreted
@pytest.mark.parametrize(
    ("outputs", "count", "columns"), [(1, 130, 3), (4, 64, 129), (17, 65, 65), (65, 70, 130)]
)
def test_mix_around_the_tiles(outputs: int, count: int, columns: int) -> None:
    from mmfl_fast.kernels.mix import triton

    x, matrix = torch.randn(count, columns), torch.randn(outputs, count, dtype=torch.float64)
    assert_close(triton.mix([x], 1, True, matrix, NO_OFFSET, False)[0], matrix @ x.double(), torch.float32)
    centred = x.double() - x.double().mean(dim=0)
    assert_close(triton.mix([x], 1, True, matrix, NO_OFFSET, True)[0], matrix @ centred, torch.float32)


@interpreted
@pytest.mark.parametrize("outputs", [2, 20])
def test_mix_reads_no_row_of_weight_zero(outputs: int) -> None:
    from mmfl_fast.kernels.mix import triton

    x = torch.randn(6, 70)
    x[0, 3] = x[5, 69] = torch.nan
    matrix = torch.rand(outputs, 6, dtype=torch.float64)
    matrix[:, 5] = 0
    matrix[1:, 0] = 0
    (ours,) = triton.mix([x], 1, True, matrix, NO_OFFSET, False)
    exact = matrix @ x.nan_to_num().double()
    exact[0, 3] = torch.nan
    assert_close(ours, exact, torch.float32)


@interpreted
def test_mix_of_an_empty_segment() -> None:
    from mmfl_fast.kernels.mix import triton

    matrix = torch.ones(2, 3, dtype=torch.float64)
    x, nothing = torch.randn(3, 4), torch.empty(3, 0)
    ours = triton.mix([nothing, x], 2, True, matrix, NO_OFFSET, False)
    assert ours[0].shape == (2, 0)
    assert_close(ours[1], matrix @ x.double(), torch.float32)
    assert triton.mix([x], 1, True, matrix[:0], NO_OFFSET, False)[0].shape == (0, 4)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_cross_gram_sq(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmfl_fast.kernels.cross_gram_sq import reference, triton

    monkeypatch.setattr(triton, "_STRIP_BYTES", 60_000)
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
            ours = triton.cross_gram_sq(blocks, mean_columns, normalise, False)
            exact = reference.cross_gram_sq(exact_blocks, mean_columns, normalise, False)
            assert_close(ours, exact, torch.float64 if dtype == torch.float64 else torch.float32)


PROTOTYPE_SHAPES = [
    (1, 1, 1, 1, 1, 0),
    (1, 5, 7, 3, 1, 0),
    (3, 70, 40, 65, 1, 3),
    (2, 17, 33, 20, 2, 1),
    (3, 65, 10, 5, 3, 3),
]


@interpreted
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
    from mmfl_fast.kernels.prototype_loss import reference, triton

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
    loss, log_sum = triton.prototype_loss(features, *others)
    assert loss.dtype == compute
    exact_prototypes = prototypes.double().requires_grad_()
    options = (labels, exact_prototypes, mask, temperature, normalise, False)
    exact = reference.prototype_loss(features.double(), *options)
    assert_close(loss, exact, compute)
    ours = triton.prototype_loss_backward(upstream, loss, log_sum, features, *others)
    # A row without upstream gradient contributes nothing, be it NaN.
    exact_features = torch.where(upstream[..., None] == 0, 1.0, features.double()).requires_grad_()
    exact = reference.prototype_loss(exact_features, *options)
    exact_gradients = torch.autograd.grad((exact * upstream).sum(), (exact_features, exact_prototypes))
    for gradient, exact_gradient in zip(ours, exact_gradients, strict=True):
        assert gradient.dtype == dtype
        assert_close(gradient, exact_gradient, dtype)


@interpreted
def test_prototype_loss_adds_splits_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmfl_fast.kernels.prototype_loss import triton

    monkeypatch.setattr(triton, "_SHORTEST_SPLIT", 1)
    features, prototypes = torch.randn(2, 150, 9), torch.randn(1, 4, 9)
    others = (torch.randint(0, 4, (2, 150)), prototypes, None, 0.5, True, False)
    loss, log_sum = triton.prototype_loss(features, *others)
    split = triton.prototype_loss_backward(torch.ones(2, 150), loss, log_sum, features, *others)
    monkeypatch.setattr(triton, "_PROGRAMS", 1)
    whole = triton.prototype_loss_backward(torch.ones(2, 150), loss, log_sum, features, *others)
    assert_close(split[1], whole[1], torch.float32)
    assert torch.equal(split[0], whole[0])


@interpreted
def test_prototype_loss_of_large_logits_and_one_certain_class() -> None:
    from mmfl_fast.kernels.prototype_loss import triton

    features, prototypes = torch.tensor([[[1e4, 0.0], [0.0, 7.0]]]), torch.eye(2)[None]
    others = (torch.tensor([[0, 1]]), prototypes, None, 1.0, False, False)
    loss, log_sum = triton.prototype_loss(features, *others)
    exact = torch.tensor([[0.0, 9.1147e-4]])
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)
    gradient, _ = triton.prototype_loss_backward(torch.ones(1, 2), loss, log_sum, features, *others)
    torch.testing.assert_close(gradient[0, 1], torch.tensor([9.1105e-4, -9.1105e-4]), rtol=1e-3, atol=0)
    assert (gradient[0, 0] == 0).all()


@interpreted
def test_prototype_loss_of_wrong_labels_is_nan_without_a_gradient() -> None:
    from mmfl_fast.kernels.prototype_loss import triton

    features, prototypes = torch.randn(1, 4, 3), torch.randn(1, 5, 3)
    others = (torch.tensor([[5, 0, -1, -100]]), prototypes, None, 1.0, True, False)
    loss, log_sum = triton.prototype_loss(features, *others)
    assert loss.isnan().tolist() == [[True, False, True, False]]
    gradients = triton.prototype_loss_backward(torch.ones(1, 4), loss, log_sum, features, *others)
    assert (gradients[0][0, [0, 2, 3]] == 0).all()
    assert gradients[1].isfinite().all()


@interpreted
def test_prototype_loss_of_ignored_rows_alone_is_zero() -> None:
    from mmfl_fast.kernels.prototype_loss import triton

    features, prototypes = torch.randn(2, 3, 4), torch.randn(1, 2, 4)
    others = (torch.full((2, 3), -100), prototypes, torch.zeros(1, 2, dtype=torch.bool), 0.1, True, False)
    loss, log_sum = triton.prototype_loss(features, *others)
    assert (loss == 0).all()
    for gradient in triton.prototype_loss_backward(torch.ones(2, 3), loss, log_sum, features, *others):
        assert (gradient == 0).all()


@interpreted
def test_a_table_longer_than_one_launch_can_write() -> None:
    from mmfl_fast.kernels.mix import triton

    rows = [torch.randn(3) for _ in range(300)]
    matrix = torch.rand(1, 300, dtype=torch.float64)
    (ours,) = triton.mix(rows, 1, False, matrix, NO_OFFSET, False)
    assert_close(ours, matrix @ torch.stack(rows).double(), torch.float32)
