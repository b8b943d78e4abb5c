"""The bodies of the CUDA kernels of cross_gram_sq, run on the CPU under AddressSanitizer and UBSan."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

Run = Callable[..., Any]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FLAGS = [(False, False), (True, False), (False, True), (True, True)]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def run(compile_kernels: Any) -> Run:
    program: Run = compile_kernels("cross_gram_sq", sanitized=True, plans=("gram",))
    return program


@pytest.fixture(scope="module")
def broken(compile_kernels: Any) -> Run:
    program: Run = compile_kernels("cross_gram_sq", sanitized=False, plans=("gram",))
    return program


def views(count: int, rows: int, columns: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> Tensor:
    return (torch.randn(batch, count, rows, columns) + 0.5).to(dtype)


def emulated(
    run: Run,
    blocks: Sequence[Tensor],
    mean_columns: bool = False,
    normalise_rows: bool = False,
    tf32: bool = False,
    backward: bool = False,
    held_bytes: int = 1 << 28,
) -> Tensor:
    """[B, K, K]"""
    batch, _, rows, _ = blocks[0].shape
    parts: list[Any] = [backward, mean_columns, normalise_rows, tf32, held_bytes, batch, rows, len(blocks)]
    for block in blocks:
        parts += [block.shape[1], block.shape[3], block]
    count = sum(block.shape[1] for block in blocks)
    return torch.from_numpy(run(*parts).copy()).view(batch, count, count)


def exact(blocks: Sequence[Tensor], mean_columns: bool = False, normalise_rows: bool = False) -> Tensor:
    grams = []
    for block in blocks:
        x = block.double()
        x = torch.nn.functional.normalize(x, dim=-1) if normalise_rows else x
        x = x - x.mean(dim=-2, keepdim=True) if mean_columns else x
        grams.append((x @ x.mT).flatten(-2))
    rows = torch.cat(grams, dim=1)
    return rows @ rows.mT


def assert_close(ours: Tensor, truth: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, truth, rtol=0, atol=tolerance * float(truth.abs().max()))
    assert torch.equal(ours, ours.mT)


# By rows and by columns.
@pytest.mark.parametrize(("rows", "columns"), [(20, 70), (80, 9)])
@pytest.mark.parametrize(("mean_columns", "normalise_rows"), FLAGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways(
    dtype: torch.dtype, mean_columns: bool, normalise_rows: bool, rows: int, columns: int, run: Run
) -> None:
    blocks = [views(3, rows, columns, dtype)]
    ours = emulated(run, blocks, mean_columns, normalise_rows)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    assert_close(ours, exact(blocks, mean_columns, normalise_rows), tolerance)


# Around the tile, and a dimension to sum over that is cut in two.
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (65, 66), (130, 64), (2100, 2), (2, 2100)])
def test_odd_shapes(rows: int, columns: int, run: Run) -> None:
    blocks = [views(2, rows, columns)]
    assert_close(emulated(run, blocks), exact(blocks), 2e-6)


@pytest.mark.parametrize("rows", [6, 200])
def test_views_of_different_widths_in_a_batch(rows: int, run: Run) -> None:
    blocks = [views(2, rows, 3, batch=2), views(1, rows, 70, batch=2), views(2, rows, 0, batch=2)]
    assert_close(emulated(run, blocks, True, True), exact(blocks, True, True), 2e-6)


def test_gram_matrices_held_in_several_runs(run: Run) -> None:
    # Six tiles, two of two views at a time.
    blocks = [views(2, 130, 150)]
    ours = emulated(run, blocks, held_bytes=4 * 64 * 64 * 4)
    assert_close(ours, exact(blocks), 2e-6)


@pytest.mark.parametrize("form", ["sliced", "transposed", "view last", "expanded", "misaligned"])
@pytest.mark.parametrize(("rows", "columns"), [(9, 20), (60, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_do_not_change_a_bit(
    form: str, rows: int, columns: int, dtype: torch.dtype, run: Run
) -> None:
    x = views(3, rows, columns, dtype)
    if form == "sliced":
        strided = torch.full((1, 3, rows, 2 * columns), torch.nan, dtype=dtype)[..., ::2].copy_(x)
    elif form == "transposed":
        strided = x.mT.contiguous().mT
    elif form == "view last":
        strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    elif form == "misaligned":
        strided = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    else:
        strided = x[:, :1].expand(1, 3, rows, columns)
        x = strided.contiguous()
    assert torch.equal(emulated(run, [strided], True, True), emulated(run, [x], True, True))


@pytest.mark.parametrize(("rows", "columns"), [(6, 30), (60, 5)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("flag", [False, True])
def test_a_view_that_is_not_finite_stays_in_its_row_and_column(
    flag: bool, value: float, rows: int, columns: int, run: Run
) -> None:
    x = views(4, rows, columns)
    others = [0, 2, 3]
    expected = emulated(run, [x[:, others]], flag, flag)
    x[0, 1, 2, 3] = value
    got = emulated(run, [x], flag, flag)[0]
    assert got[1].isnan().all()
    assert got[:, 1].isnan().all()
    torch.testing.assert_close(got[others][:, others], expected[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (60, 5)])
def test_rows_of_zeros(rows: int, columns: int, run: Run) -> None:
    x = views(2, rows, columns)
    x[0, 0, 3] = 0
    assert_close(emulated(run, [x], True, True), exact([x], True, True), 2e-6)


@pytest.mark.parametrize(("rows", "columns"), [(20, 70), (80, 9)])
def test_tf32_rounds_factors(rows: int, columns: int, run: Run) -> None:
    blocks = [views(3, rows, columns)]
    ours, truth = emulated(run, blocks, tf32=True), exact(blocks)
    assert_close(ours, truth, 2e-3)
    with pytest.raises(AssertionError):
        assert_close(ours, truth, 1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(66, 70), (1100, 4)])
def test_the_order_of_threads_and_blocks_changes_no_bit(rows: int, columns: int, run: Run) -> None:
    blocks = [views(2, rows, columns)]
    assert torch.equal(emulated(run, blocks, True, True), emulated(run, blocks, True, True, backward=True))


# By rows: scales, means, tiles, and the products with their copies, join and finish of gram. By columns:
# scales, means, tiles, their join, and pairs of views.
@pytest.mark.parametrize(("rows", "columns", "needed"), [(20, 90, [1, 2, 3, 4]), (2100, 5, [1, 2, 3])])
def test_a_missing_barrier_is_seen(
    rows: int, columns: int, needed: list[int], broken: Run, launches_with_barriers: Any
) -> None:
    blocks = [views(2, rows, columns)]
    assert launches_with_barriers(broken, lambda run: emulated(run, blocks, True, True), 6) == needed
