from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mmfl_fast import _C
from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLAGS = [(False, False), (True, False), (False, True), (True, True)]


def views(count=3, rows=9, columns=5, dtype=torch.float32, seed=0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(count, rows, columns, generator=g) + 0.5).to(dtype)


def expression(matrices: list[Tensor], mean_columns: bool, normalise_rows: bool) -> Tensor:
    """Pair by pair, in the dtype of the input."""
    if normalise_rows:
        matrices = [torch.nn.functional.normalize(x, dim=1) for x in matrices]
    if mean_columns:
        matrices = [x - x.mean(dim=0) for x in matrices]
    return torch.stack([torch.stack([(x.mT @ y).square().sum() for y in matrices]) for x in matrices])


def assert_accurate(blocks: list[Tensor], mean_columns: bool, normalise_rows: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    dtype = blocks[0].dtype
    count = sum(len(block) for block in blocks)
    # Not symmetric, not uniform.
    upstream = torch.randn(count, count, generator=generator, dtype=torch.float64)

    def run(function, dtype):
        leaves = [block.detach().to(dtype).requires_grad_() for block in blocks]
        result = function(leaves)
        return [result, *torch.autograd.grad(result, leaves, upstream.to(result.dtype))]

    def plain(leaves):
        return expression([view for leaf in leaves for view in leaf], mean_columns, normalise_rows)

    ours = run(lambda x: cross_gram_sq(x, mean_columns=mean_columns, normalise_rows=normalise_rows), dtype)
    assert torch.equal(ours[0], ours[0].mT)
    for got, torch_value, truth in zip(ours, run(plain, dtype), run(plain, torch.float64), strict=True):
        scale = truth.abs().max()
        error = (got.double() - truth).abs().max()
        stored = torch.finfo(got.dtype).eps + 1e-6 * (dtype != torch.float64) + 1e-14
        assert error <= 2 * (torch_value.double() - truth).abs().max() + scale * stored


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mean_columns", "normalise_rows"), FLAGS)
@pytest.mark.parametrize(("rows", "columns"), [(20, 70), (300, 9)])
def test_both_forms_match_float64(dtype, mean_columns, normalise_rows, rows, columns):
    assert_accurate([views(4, rows, columns, dtype)], mean_columns, normalise_rows)


@pytest.mark.parametrize("rows", [1, 2, 7, 63, 64, 65, 129])
@pytest.mark.parametrize("columns", [1, 3, 64, 65])
def test_odd_shapes(rows, columns):
    assert_accurate([views(3, rows, columns)], mean_columns=rows > 1, normalise_rows=False)


@pytest.mark.parametrize("columns", [255, 256, 257, 600])
def test_columns_beyond_one_pass(columns):
    assert_accurate([views(2, 70, columns)], mean_columns=True, normalise_rows=True)


@pytest.mark.parametrize("count", [1, 63, 65, 130])
@pytest.mark.parametrize(("rows", "columns"), [(5, 4), (40, 1)])
def test_view_counts_around_the_tile(count, rows, columns):
    assert_accurate([views(count, rows, columns)], mean_columns=True, normalise_rows=False)


@pytest.mark.parametrize("rows", [6, 400])
def test_views_of_different_widths(rows):
    blocks = [views(2, rows, 3, seed=1), views(1, rows, 70, seed=2), views(3, rows, 20, seed=3)]
    assert_accurate(blocks, mean_columns=True, normalise_rows=True)


def test_held_tiles_in_several_runs():
    # 160 views of 260 rows: 15 tiles of 16 KiB each exceed the 32 MiB of one run.
    x = views(160, 260, 300)
    got = cross_gram_sq([x], mean_columns=True)
    centred = (x - x.mean(dim=1, keepdim=True)).double()
    grams = (centred @ centred.mT).flatten(1)
    torch.testing.assert_close(got, grams @ grams.mT, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", ["sliced", "transposed", "view_last", "expanded"])
@pytest.mark.parametrize(("rows", "columns"), [(9, 20), (90, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_change_a_bit(form, rows, columns, dtype):
    x = views(3, rows, columns, dtype)
    if form == "sliced":
        strided = torch.full((3, rows, 2 * columns + 1), torch.nan, dtype=dtype)[..., 1::2].copy_(x)
    elif form == "transposed":
        strided = x.mT.contiguous().mT
    elif form == "view_last":
        strided = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    else:
        strided = x[:1].expand(3, rows, columns)
        x = strided.contiguous()
    options = {"mean_columns": True, "normalise_rows": True}
    assert torch.equal(cross_gram_sq([strided], **options), cross_gram_sq([x], **options))


def test_blocks_are_the_same_as_one_tensor():
    x = views(5, 12, 30)
    parts = [x[:2], x[2:3], x[3:]]
    assert torch.equal(cross_gram_sq(parts, mean_columns=True), cross_gram_sq([x], mean_columns=True))


@pytest.mark.parametrize(("rows", "columns"), [(200, 300), (3000, 40)])
def test_same_bits_for_every_thread_count(rows, columns):
    x = views(9, rows, columns)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8, 8):
            torch.set_num_threads(count)
            results.append(cross_gram_sq([x], mean_columns=True, normalise_rows=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("rows", "columns"), [(6, 30), (60, 5)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_view_stays_in_its_row_and_column(backend, rows, columns, value):
    x = views(4, rows, columns)
    others = [0, 2, 3]
    with use_backend(backend):
        expected = cross_gram_sq([x[others]], mean_columns=True, normalise_rows=True)
        x[1, 2, 3] = value
        x.requires_grad_()
        got = cross_gram_sq([x], mean_columns=True, normalise_rows=True)
        (gradient,) = torch.autograd.grad(got[others][:, others].sum(), x)
    assert got[1].isnan().all()
    assert got[:, 1].isnan().all()
    torch.testing.assert_close(got[others][:, others], expected, rtol=1e-6, atol=0)
    assert torch.isfinite(gradient[others]).all()


def test_zero_rows_stay_zero_with_no_gradient():
    x = views(2, 6, 4)
    x[0, 3] = 0
    x.requires_grad_()
    result = cross_gram_sq([x], normalise_rows=True)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    rows = [0, 1, 2, 4, 5]
    unit = torch.nn.functional.normalize(x[0, rows], dim=1)
    assert result[0, 0].item() == pytest.approx((unit.mT @ unit).square().sum().item(), rel=1e-5)
    assert torch.equal(gradient[0, 3], torch.zeros(4))
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("mean_columns", "normalise_rows"), FLAGS)
@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (7, 2)])
def test_gradcheck(mean_columns, normalise_rows, rows, columns):
    x = views(2, rows, columns, torch.float64).requires_grad_()
    y = views(1, rows, columns + 1, torch.float64, seed=5).requires_grad_()

    def function(x, y):
        return cross_gram_sq([x, y], mean_columns=mean_columns, normalise_rows=normalise_rows)

    assert torch.autograd.gradcheck(function, (x, y))
    assert torch.autograd.gradgradcheck(function, (x, y))


def test_backward_in_strips(monkeypatch):
    from mmfl_fast.kernels.cross_gram_sq import op

    for rows, columns in ((12, 20), (50, 4)):
        x = views(3, rows, columns, torch.float64).requires_grad_()
        whole = torch.autograd.grad(cross_gram_sq([x]).square().sum(), x)[0]
        with monkeypatch.context() as patch:
            patch.setattr(op, "_STRIP", 64)
            strips = torch.autograd.grad(cross_gram_sq([x]).square().sum(), x)[0]
        torch.testing.assert_close(strips, whole)


def test_opcheck():
    x = views(2, 6, 4)[None].requires_grad_()
    y = views(1, 6, 7, seed=1)[None].requires_grad_()
    torch.library.opcheck(torch.ops.mmfl_fast.cross_gram_sq.default, ([x, y], True, True, False))


def test_transforms_match_the_reference():
    x, weight = views(4, 9, 6, torch.float64).reshape(2, 2, 9, 6), torch.rand(2, 2, dtype=torch.float64)

    def function(x):
        return (cross_gram_sq([x, 2 * x[:1]], mean_columns=True)[:2, :2] * weight).sum().log()

    transforms = {
        "vmap": torch.func.vmap(function),
        "vmap of grad": torch.func.vmap(torch.func.grad(function)),
        "nested vmap": lambda x: torch.func.vmap(torch.func.vmap(function), in_dims=-1)(
            torch.stack([x, 2 * x, 3 + x], dim=-1)
        ),
        "jacrev": torch.func.jacrev(lambda x: torch.func.vmap(function)(x)),
        "grad of grad": lambda x: torch.func.grad(lambda y: torch.func.grad(function)(y).square().sum())(
            x[0]
        ),
    }
    for name, transform in transforms.items():
        with use_backend("reference"):
            expected = transform(x)
        torch.testing.assert_close(transform(x), expected, msg=lambda m, name=name: f"{name}: {m}")


def test_compiles_to_one_graph():
    def loss(x):
        return cross_gram_sq([torch.tanh(x)], mean_columns=True, normalise_rows=True).sum().log()

    x = views(3, 9, 6).requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(got, expected)


def test_the_extension_refuses_bad_arguments(without_memory):
    x, out = torch.randn(1, 2, 3, 4), torch.empty(1, 2, 2, dtype=torch.float64)

    def call(*blocks, out=out):
        _C.cross_gram_sq(list(blocks), False, False, out, 1)

    call(x)
    with pytest.raises(RuntimeError, match="null pointer"):
        call(without_memory(1, 2, 3, 4))
    with pytest.raises(RuntimeError, match="null pointer"):
        call(x, out=without_memory(1, 2, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="size"):
        call(x, torch.randn(1, 2, 5, 4))
    with pytest.raises(RuntimeError, match="size"):
        call(x[0, 0])
    with pytest.raises(RuntimeError, match="size"):
        call()
    with pytest.raises(RuntimeError, match="dtype"):
        call(x, x.double())
    with pytest.raises(RuntimeError, match="dtype"):
        call(x.int())


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_every_simd_level(level, level_environment):
    script = """
import torch
from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
for rows, columns in ((70, 90), (300, 21)):
    x = torch.randn(5, rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = x - x.mean(dim=1, keepdim=True)
    grams = (centred @ centred.mT).flatten(1)
    torch.testing.assert_close(cross_gram_sq([x], mean_columns=True), grams @ grams.mT)
    torch.testing.assert_close(
        cross_gram_sq([x.float()], mean_columns=True), grams @ grams.mT, rtol=1e-5, atol=0
    )
    beside_empty = torch.zeros(10, 10, dtype=torch.float64)
    beside_empty[5:, 5:] = cross_gram_sq([x])
    torch.testing.assert_close(cross_gram_sq([x[:, :, :0], x]), beside_empty)
"""
    subprocess.run([sys.executable, "-c", script], env=level_environment(level), check=True)
