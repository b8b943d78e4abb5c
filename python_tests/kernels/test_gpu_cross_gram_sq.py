"""cross_gram_sq on a GPU, by CUDA and by Triton: against float64, and what only a GPU can get wrong."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfl_fast import _C
from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.cuda_place import cuda_place

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("nan_in_fresh_memory", "gpu_kernels")]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FLAGS = [(False, False), (True, False), (False, True), (True, True)]
# By rows and by columns: around the tile, several of them, and sums that are cut.
SHAPES = [(1, 1), (20, 70), (65, 129), (2, 5000), (80, 9), (129, 65), (5000, 2), (3000, 40)]


def views(count: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(count, rows, columns) + 0.5).to("cuda", dtype)


def expression(x: Tensor, mean_columns: bool = False, normalise_rows: bool = False) -> Tensor:
    if normalise_rows:
        x = torch.nn.functional.normalize(x, dim=-1)
    if mean_columns:
        x = x - x.mean(dim=-2, keepdim=True)
    return torch.stack([(view.mT @ x).square().sum(dim=(-2, -1)) for view in x])


def with_gradient(function: Any, x: Tensor, upstream: Tensor, *flags: bool) -> list[Tensor]:
    x = x.detach().requires_grad_()
    result = function(x, *flags)
    return [result.detach(), *torch.autograd.grad(result, x, upstream.to(result.dtype))]


def ours_alone(x: Tensor, mean_columns: bool = False, normalise_rows: bool = False) -> Tensor:
    return cross_gram_sq([x], mean_columns=mean_columns, normalise_rows=normalise_rows)


def assert_same(got: Tensor, expected: Tensor, kernels: str) -> None:
    """To the last bit; Triton's kernels cut their work by strides and alignment, too."""
    tolerance = 0.0 if kernels == "native" else 2e-6
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("mean_columns", "normalise_rows"), FLAGS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_values_and_gradients(
    rows: int,
    columns: int,
    mean_columns: bool,
    normalise_rows: bool,
    dtype: torch.dtype,
    assert_accurate: Any,
) -> None:
    flags = (mean_columns and rows > 1, normalise_rows)
    x, upstream = views(3, rows, columns, dtype), torch.randn(3, 3, dtype=torch.float64, device="cuda")
    ours = with_gradient(ours_alone, x, upstream, *flags)
    plain = with_gradient(expression, x, upstream, *flags)
    exact = with_gradient(expression, x.double(), upstream, *flags)
    assert torch.equal(ours[0], ours[0].mT)
    for got, torch_value, truth in zip(ours, plain, exact, strict=True):
        stored = torch.finfo(got.dtype).eps + (1e-13 if dtype == torch.float64 else 2e-6)
        assert_accurate(got, torch_value, truth, stored)


@pytest.mark.parametrize("rows", [6, 400])
def test_views_of_different_widths(rows: int) -> None:
    blocks = [views(2, rows, 3), views(1, rows, 70), views(3, rows, 20)]
    result = cross_gram_sq(blocks, mean_columns=True, normalise_rows=True)
    grams = []
    for view in [view for block in blocks for view in block]:
        unit = torch.nn.functional.normalize(view.double(), dim=-1)
        centred = unit - unit.mean(dim=0)
        grams.append((centred @ centred.mT).flatten())
    stacked = torch.stack(grams)
    torch.testing.assert_close(result, stacked @ stacked.mT, rtol=2e-6, atol=1e-6)


def test_gram_matrices_held_in_several_runs() -> None:
    # 160 views of 2112 rows: 561 tiles of 2.5 MiB each exceed the 256 MiB of one run.
    x = torch.randn(160, 2112, 2200, device="cuda")
    x -= x.mean(dim=1, keepdim=True)
    rows = torch.stack([(view.double() @ view.double().mT).flatten() for view in x[:4]])
    torch.testing.assert_close(cross_gram_sq([x])[:4, :4], rows @ rows.mT, rtol=1e-5, atol=0)


def test_tf32_is_less_accurate_and_no_more() -> None:
    for x in (views(3, 100, 300), views(3, 300, 50)):
        exact = expression(x.double())
        error = (cross_gram_sq([x], tf32=True) - exact).abs().max() / exact.abs().max()
        assert 1e-7 < error < 5e-3


@pytest.mark.parametrize(("rows", "columns"), [(70, 90), (900, 50)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_change_the_result(
    dtype: torch.dtype, rows: int, columns: int, gpu_kernels: str
) -> None:
    x = views(3, rows, columns, dtype)
    sliced = torch.full((3, rows, 2 * columns + 1), torch.nan, dtype=dtype, device="cuda")[..., 1::2]
    options = {"mean_columns": True, "normalise_rows": True}
    expected = cross_gram_sq([x], **options)
    for strided in (
        sliced.copy_(x),
        x.mT.contiguous().mT,
        x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    ):
        assert_same(cross_gram_sq([strided], **options), expected, gpu_kernels)
    assert_same(cross_gram_sq([x[:1], x[1:]], **options), expected, gpu_kernels)


@pytest.mark.parametrize(("rows", "columns"), [(6, 30), (600, 50)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("flag", [False, True])
def test_a_view_that_is_not_finite_stays_in_its_row_and_column(
    flag: bool, value: float, rows: int, columns: int
) -> None:
    x, others = views(4, rows, columns), [0, 2, 3]
    options = {"mean_columns": flag, "normalise_rows": flag}
    expected = cross_gram_sq([x[others]], **options)
    x[1, 2, 3] = value
    x.requires_grad_()
    got = cross_gram_sq([x], **options)
    (gradient,) = torch.autograd.grad(got[others][:, others].sum(), x)
    assert got[1].isnan().all()
    assert got[:, 1].isnan().all()
    torch.testing.assert_close(got[others][:, others], expected, rtol=1e-6, atol=0)
    assert gradient[others].isfinite().all()


@pytest.mark.parametrize(("rows", "columns"), [(200, 300), (3000, 40)])
def test_same_bits_on_every_run_and_stream(rows: int, columns: int) -> None:
    x = views(9, rows, columns)
    options = {"mean_columns": True, "normalise_rows": True}
    first, second = (cross_gram_sq([x], **options) for _ in range(2))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        third = cross_gram_sq([x], **options)
    torch.cuda.synchronize()
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize(("rows", "columns"), [(100, 150), (900, 40)])
def test_a_graph_can_hold_it(rows: int, columns: int) -> None:
    x = views(5, rows, columns)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        cross_gram_sq([x], mean_columns=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cross_gram_sq([x], mean_columns=True)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, cross_gram_sq([x], mean_columns=True))


def test_temporaries_may_go_before_the_kernel_runs() -> None:
    x = views(8, 300, 200)
    expected = cross_gram_sq([x])
    # Keeps the stream busy until long after the call has returned.
    torch.cuda._sleep(100_000_000)
    got = cross_gram_sq([x.clone()])
    gc.collect()
    garbage = [torch.full((8, 300, 200), torch.nan, device="cuda") for _ in range(8)]
    assert torch.equal(got, expected)
    assert len(garbage) == 8


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = views(3, 40, 30).to("cuda:1")
    result = cross_gram_sq([x])
    assert result.device == x.device
    torch.testing.assert_close(result, expression(x.double()), rtol=1e-5, atol=0)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(("mean_columns", "normalise_rows"), FLAGS)
@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (7, 2)])
def test_gradcheck(rows: int, columns: int, mean_columns: bool, normalise_rows: bool) -> None:
    x = views(2, rows, columns, torch.float64).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return cross_gram_sq([x], mean_columns=mean_columns, normalise_rows=normalise_rows)

    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_backward_twice_adds() -> None:
    x = views(3, 60, 20).requires_grad_()
    upstream = torch.randn((), dtype=torch.float64, device="cuda").expand(3, 3)
    result = cross_gram_sq([x])
    result.backward(upstream, retain_graph=True)
    assert x.grad is not None
    once = x.grad.clone()
    result.backward(upstream)
    torch.testing.assert_close(x.grad, 2 * once, rtol=1e-6, atol=0)


def test_opcheck() -> None:
    x = views(2, 6, 4)[None].requires_grad_()
    torch.library.opcheck(torch.ops.mmfl_fast.cross_gram_sq.default, ([x], True, True, False))


def test_null_pointers_are_refused(without_memory: Any) -> None:
    nothing, out = without_memory(1, 2, 3, 4, device="cuda"), torch.empty(1, 2, 2, device="cuda").double()
    with pytest.raises(RuntimeError, match="null pointer"):
        _C.cross_gram_sq_cuda([nothing], False, False, False, out, *cuda_place(out.device))
