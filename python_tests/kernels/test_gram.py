from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfl_fast import _C
from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.gram import gram, reference

pytestmark = pytest.mark.usefixtures("nan_in_fresh_memory")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [
    "contiguous", "slice", "every second", "transposed", "expanded", "two strides", "segments", "two stacks",
    "state dicts",
]  # fmt: skip
# Around the quad (4 rows), the rows added up at a time (8), the group (16), the panel (256), the columns of a
# block (128, 256) and of a tile (512, 1024, for up to 16 rows twice as many).
SHAPES = [
    (1, 1), (2, 3), (3, 31), (4, 512), (5, 513), (8, 257), (9, 255), (11, 4100), (16, 2049), (17, 1025),
    (25, 2047), (129, 700), (257, 300),
]  # fmt: skip


def exact_gram(
    matrix: Tensor, origin: str | Tensor | None = None, centre_rows: bool = False
) -> tuple[Tensor, Tensor]:
    """From the definition, in float64."""
    rows = matrix.double()
    if isinstance(origin, str):
        rows = rows - rows.mean(dim=0)
    elif origin is not None:
        rows = rows - origin.double()
    means = rows.mean(dim=1) if centre_rows else torch.zeros(len(rows), dtype=torch.float64)
    rows = rows - means[:, None]
    return rows @ rows.T, means


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_matches_float64(
    rows: int, columns: int, dtype: torch.dtype, backend: str, assert_accurate: Any
) -> None:
    x = (torch.randn(rows, columns) + torch.randn(columns)).to(dtype)
    for mean_origin in (False, True):
        for centre_rows in (False, True):
            origin = "mean" if mean_origin else None
            exact, exact_means = exact_gram(x, origin, centre_rows)
            plain = x - x.mean(dim=0) if mean_origin else x
            plain = plain - plain.mean(dim=1, keepdim=True) if centre_rows else plain
            with use_backend(backend):
                products, means = gram([x], 1, True, [], mean_origin, centre_rows)
            floor = 1e-13 if dtype == torch.float64 else 2e-6
            assert_accurate(products, plain @ plain.T, exact, floor)
            torch.testing.assert_close(means, exact_means, rtol=1e-5, atol=2e-6)
            assert torch.equal(products, products.T)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(layout: str, dtype: torch.dtype, backend: str, arrange: Any) -> None:
    rows = arrange(layout, torch.randn(6, 2050).to(dtype))
    for centre_rows in (False, True):
        with use_backend(backend):
            products, _ = gram(*rows.arguments, [], True, centre_rows)
        exact, _ = exact_gram(rows.matrix, "mean", centre_rows)
        torch.testing.assert_close(products, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()) + 1e-9)


def test_segments_of_different_dtypes() -> None:
    blocks = [torch.randn(4, 30), torch.randn(4, 20).bfloat16(), torch.randn(4, 7, dtype=torch.float64)]
    exact, _ = exact_gram(torch.cat([block.double() for block in blocks], dim=1))
    products, _ = gram(blocks, 3, True, [], False, False)
    torch.testing.assert_close(products, exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("rows", [5, 33, 260])
def test_many_small_segments_equal_one_tensor(rows: int) -> None:
    x = torch.randn(rows, 3000)
    widths = [1, 0, 2, 700, 511, 13, 1024, 1, 748]
    parts = [part.contiguous() for part in x.split(widths, dim=1)]
    whole = gram([x], 1, True, [], True, True)
    cut = gram(parts, len(widths), True, [], True, True)
    assert torch.equal(whole[0], cut[0])
    assert torch.equal(whole[1], cut[1])


@pytest.mark.parametrize("width", [256, 2048])
@pytest.mark.parametrize("rows", [5, 40, 260])
def test_segments_that_end_where_a_block_does(rows: int, width: int) -> None:
    x = torch.randn(rows, 3 * width)
    expected, mean = gram([x], 1, True, [], True, True)
    # Each in memory of its own, so that nothing right lies behind the end of one.
    parts = [part.clone() for row in x for part in row.split(width)]
    found, found_mean = gram(parts, 3, False, [], True, True)
    assert torch.equal(found, expected)
    assert torch.equal(found_mean, mean)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("stacked", [True, False])
def test_given_origin(stacked: bool, backend: str) -> None:
    x, o = torch.randn(5, 40), torch.randn(40)
    blocks = [x] if stacked else list(x)
    with use_backend(backend):
        products, means = gram(blocks, 1, stacked, [o], False, True)
    exact, exact_means = exact_gram(x, o, centre_rows=True)
    torch.testing.assert_close(products, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(means, exact_means, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("relative", [1e-4, 1e-6])
@pytest.mark.parametrize("rows", [6, 260])
def test_rows_that_differ_by_little_keep_their_accuracy(relative: float, rows: int) -> None:
    x = torch.randn(3001) + relative * torch.randn(rows, 3001)
    exact, _ = exact_gram(x, "mean", centre_rows=True)
    products, _ = gram([x], 1, True, [], True, True)
    torch.testing.assert_close(products, exact, rtol=0, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("change", ["first row", "last row", "part of a row", "row at the centroid"])
@pytest.mark.parametrize("rows", [6, 40])
def test_a_row_unlike_the_others_does_not_cost_accuracy(rows: int, change: str, assert_accurate: Any) -> None:
    x = torch.randn(5000) + 1e-2 * torch.randn(rows, 5000)
    if change == "first row":
        x[0] += 100 * torch.randn(5000)
    elif change == "last row":
        x[-1] += 100 * torch.randn(5000)
    elif change == "part of a row":
        x[1, 2500:2600] += 100 * torch.randn(100)
    else:
        x[2] = (x.sum(dim=0) - x[2]) / (rows - 1)
    exact, _ = exact_gram(x, "mean", centre_rows=True)
    products, _ = gram([x], 1, True, [], True, True)
    plain = x - x.mean(dim=0)
    plain = plain - plain.mean(dim=1, keepdim=True)
    assert_accurate(products, plain @ plain.T, exact, 1e-7)


@pytest.mark.parametrize(("rows", "columns", "at"), [(7, 5000, 300), (40, 5000, 300), (5, 400_000, 203_000)])
def test_a_jump_of_the_element_mean_does_not_cost_accuracy(rows: int, columns: int, at: int) -> None:
    x = torch.randn(rows, columns)
    x[:, at:] += 1000 * torch.randn(rows, 1)
    exact, exact_means = exact_gram(x, centre_rows=True)
    products, means = gram([x], 1, True, [], False, True)
    torch.testing.assert_close(products, exact, rtol=0, atol=2e-6 * float(exact.abs().max()))
    torch.testing.assert_close(means, exact_means, rtol=1e-6, atol=1e-6)


# 300 000 columns are cut into chunks of several tiles, of which only the first is read twice.
@pytest.mark.parametrize("columns", [5000, 300_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_large_element_means_do_not_cost_accuracy(dtype: torch.dtype, columns: int) -> None:
    x = (
        torch.randn(7, columns, dtype=torch.float64)
        .mul(0.5)
        .add(torch.arange(7)[:, None] * 1000.0 + 4000)
        .to(dtype)
    )
    exact, exact_means = exact_gram(x, centre_rows=True)
    products, means = gram([x], 1, True, [], False, True)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(products, exact, rtol=0, atol=tolerance * float(exact.abs().max()))
    torch.testing.assert_close(means, exact_means, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("rows", [3, 5, 300])
def test_equal_rows_leave_exactly_nothing_about_their_mean(rows: int, backend: str) -> None:
    x = torch.randn(1, 777).expand(rows, 777).contiguous()
    with use_backend(backend):
        products, _ = gram([x], 1, True, [], True, False, False)
    assert torch.equal(products, torch.zeros(rows, rows, dtype=torch.float64))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("rows", [6, 270])
def test_non_finite_rows_spoil_only_themselves(rows: int, value: float, backend: str) -> None:
    x = torch.randn(rows, 1500)
    x[2, 700] = value
    x[rows - 1, 1499] = value
    good = [k for k in range(rows) if k not in (2, rows - 1)]
    for mean_origin in (False, True):
        with use_backend(backend):
            products, means = gram([x], 1, True, [], mean_origin, True)
        exact, _ = exact_gram(x[good], "mean" if mean_origin else None, centre_rows=True)
        torch.testing.assert_close(
            products[good][:, good], exact, rtol=0, atol=2e-6 * float(exact.abs().max())
        )
        for bad in (2, rows - 1):
            assert products[bad].isnan().all()
            assert products[:, bad].isnan().all()
            assert means[bad].isnan()
        assert means[good].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_non_finite_origin_spoils_all_rows(value: float, backend: str) -> None:
    origin = torch.randn(1500)
    origin[1400] = value
    with use_backend(backend):
        products, _ = gram([torch.randn(5, 1500)], 1, True, [origin], False, False)
    assert products.isnan().all()


def test_all_rows_non_finite() -> None:
    products, means = gram([torch.full((3, 10), torch.nan)], 1, True, [], True, True)
    assert products.isnan().all()
    assert means.isnan().all()


def test_large_values_overflow_without_harm_to_the_process() -> None:
    products, _ = gram([torch.full((3, 100), 1e30)], 1, True, [], False, False)
    assert (products == torch.inf).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rows_without_elements(backend: str) -> None:
    with use_backend(backend):
        products, means = gram([torch.empty(3, 0)], 1, True, [], True, True)
    assert torch.equal(products, torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(means, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(("rows", "columns"), [(16, 20_000), (300, 2500)])
def test_same_bits_for_every_number_of_threads(rows: int, columns: int, set_threads: Any) -> None:
    x = torch.randn(rows, columns)
    results = []
    for threads in (1, 2, 3, 8, 8):
        set_threads(threads)
        results.append(gram([x], 1, True, [], True, True))
    for products, means in results[1:]:
        assert torch.equal(products, results[0][0])
        assert torch.equal(means, results[0][1])


_ON_ANOTHER_LEVEL = """
import sys, torch
from mmfl_fast import _C
from mmfl_fast.kernels.gram import gram
assert _C.simd_level() == sys.argv[1], _C.simd_level()
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    x = (torch.randn(37, 1111, generator=torch.Generator().manual_seed(1)) + 3).to(dtype)
    rows = x.double() - x.double().mean(0)
    rows = rows - rows.mean(1, keepdim=True)
    products, _ = gram([x], 1, True, [], True, True)
    torch.testing.assert_close(products, rows @ rows.T, rtol=0, atol=1e-3)
"""


@pytest.mark.parametrize("level", ["portable", "avx2"])
def test_narrower_simd_levels(level: str, level_environment: Callable[[str], dict[str, str]]) -> None:
    if level == "avx2" and _C.simd_level() == "portable":
        pytest.skip("this processor has no AVX2")
    script = [sys.executable, "-c", _ON_ANOTHER_LEVEL, level]
    subprocess.run(script, env=level_environment(level), check=True)


@pytest.mark.parametrize("mean_origin", [False, True])
@pytest.mark.parametrize("centre_rows", [False, True])
def test_gradients(mean_origin: bool, centre_rows: bool) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)

    def outputs(*blocks: Tensor) -> tuple[Tensor, Tensor]:
        return gram(blocks, 2, True, [], mean_origin, centre_rows)

    assert torch.autograd.gradcheck(outputs, (x, y))
    assert torch.autograd.gradgradcheck(outputs, (x, y))


def test_gradient_of_a_given_origin() -> None:
    o = torch.randn(3, dtype=torch.float64, requires_grad=True)
    rows = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    stack = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o, *r: gram(r, 1, False, [o], False, True), (o, *rows))
    assert torch.autograd.gradcheck(lambda o, x: gram([x], 1, True, [o], False, True), (o, stack))
    assert torch.autograd.gradgradcheck(lambda o, x: gram([x], 1, True, [o], False, True), (o, stack))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("relative", [1.0, 1e-3])
def test_gradient_matches_float64(relative: float, dtype: torch.dtype, assert_accurate: Any) -> None:
    x = (torch.randn(2001) + relative * torch.randn(9, 2001)).to(dtype)
    upstream = torch.randn(9, 9, dtype=torch.float64)

    def gradient_of(leaf: Tensor, function: Any) -> Tensor:
        leaf = leaf.clone().requires_grad_()
        (function(leaf).double() * upstream).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    def by_torch(leaf: Tensor) -> Tensor:
        rows = leaf - leaf.mean(dim=0)
        rows = rows - rows.mean(dim=1, keepdim=True)
        return rows @ rows.T

    ours = gradient_of(x, lambda leaf: gram([leaf], 1, True, [], True, True)[0])
    exact = gradient_of(x.double(), by_torch)
    assert ours.dtype == dtype
    assert_accurate(ours, gradient_of(x, by_torch), exact, 2e-6 if dtype == torch.float32 else 4e-3)


def test_nothing_flows_back_through_a_non_finite_row() -> None:
    x = torch.randn(4, 30)
    x[1, 3] = torch.nan
    x.requires_grad_()
    products, _ = gram([x], 1, True, [], True, True)
    good = torch.tensor([0, 2, 3])
    products[good][:, good].square().sum().backward()
    assert x.grad is not None
    assert x.grad[good].isfinite().all()
    assert (x.grad[1] == 0).all()


def test_expanded_and_repeated_upstream_gradients() -> None:
    x = torch.randn(4, 30, requires_grad=True)
    products, _ = gram([x], 1, True, [], False, False)
    products.sum().backward(retain_graph=True)
    assert x.grad is not None
    once = x.grad.clone()
    torch.testing.assert_close(
        once, (2 * x.sum(dim=0, keepdim=True)).expand(4, 30).detach(), rtol=1e-5, atol=1e-5
    )
    products.sum().backward()
    assert torch.equal(x.grad, 2 * once)


def _scalar(implementation: Any, x: Tensor, w: Tensor) -> Tensor:
    products, means = implementation([torch.tanh(x * w)], 1, True, [], True, True, False)
    weights = torch.arange(products.numel(), dtype=torch.float64).reshape(products.shape)
    return (products * weights).sum() + (means * means.detach().cos()).sum()


def _native(x: Tensor, w: Tensor) -> Tensor:
    return _scalar(gram, x, w)


def _plain(x: Tensor, w: Tensor) -> Tensor:
    return _scalar(reference.gram, x, w)


_TRANSFORMS = {
    "grad": lambda f, x, w: torch.func.grad(f)(x[0], w),
    "vmap": lambda f, x, w: torch.func.vmap(f, (0, None))(x, w),
    "vmap of grad": lambda f, x, w: torch.func.vmap(torch.func.grad(f, argnums=1), (0, None))(x, w),
    "vmap, other axis": lambda f, x, w: torch.func.vmap(f, (2, None))(x.permute(1, 2, 0), w),
    "vmap of vmap": lambda f, x, w: torch.func.vmap(torch.func.vmap(f, (0, None)), (None, 0))(
        x, w.expand(2, -1, -1)
    ),
    "grad of grad": lambda f, x, w: torch.func.grad(lambda x: torch.func.grad(f)(x, w).square().sum())(x[0]),
    "jacrev": lambda f, x, w: torch.func.jacrev(torch.func.grad(f))(x[0], w),
}


@pytest.mark.parametrize("transform", _TRANSFORMS)
def test_torch_func(transform: str) -> None:
    x, w = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    ours, plain = _TRANSFORMS[transform](_native, x, w), _TRANSFORMS[transform](_plain, x, w)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


# Both are raised by torch.compile about itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
def test_compile() -> None:
    x, w = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(_native, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w), _plain(x, w))
    leaf, twin = w.clone().requires_grad_(), w.clone().requires_grad_()
    compiled(x, leaf).backward()
    _plain(x, twin).backward()
    torch.testing.assert_close(leaf.grad, twin.grad)
    by_func = torch.compile(torch.func.grad(_native, argnums=1), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(by_func(x, w), twin.grad)


@pytest.mark.parametrize("stacked", [True, False])
def test_opcheck(stacked: bool) -> None:
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    o = torch.randn(4, requires_grad=True)
    blocks = [x, y] if stacked else [torch.randn(4, requires_grad=True) for _ in range(3)]
    for origin, mean_origin, centre_rows in (([], True, True), ([o], False, False)):
        arguments = (blocks, 1, stacked, origin, mean_origin, centre_rows, False)
        torch.library.opcheck(torch.ops.mmfl_fast.gram.default, arguments)


def test_the_extension_refuses_bad_arguments(without_memory: Any) -> None:
    x, out, mean = torch.randn(2, 3), torch.empty(2, 2, dtype=torch.float64), torch.empty(2).double()

    def call(
        blocks: list[Tensor], out: Tensor = out, origin: Sequence[Tensor] = (), segments: int = 1
    ) -> None:
        _C.gram(blocks, segments, True, list(origin), False, False, out, mean, 1)

    with pytest.raises(RuntimeError, match="null pointer"):
        call([without_memory(2, 3)])
    with pytest.raises(RuntimeError, match="null pointer"):
        call([x], out=without_memory(2, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="null pointer"):
        call([x], origin=[without_memory(3)])
    with pytest.raises(RuntimeError, match="dtype"):
        call([x.int()])
    with pytest.raises(RuntimeError, match="size"):
        call([x, x, x], segments=2)
    with pytest.raises(RuntimeError, match="size"):
        call([x, torch.randn(2, 4)])
    with pytest.raises(RuntimeError, match="size"):
        call([x], origin=[torch.randn(4)])
    with pytest.raises(RuntimeError, match="size"):
        call([torch.tensor(1.0)])


def test_the_op_can_be_called_directly() -> None:
    x = torch.randn(3, 5)
    direct = torch.ops.mmfl_fast.gram([x], 1, True, [], True, False, False)
    assert torch.equal(direct[0], gram([x], 1, True, [], True, False)[0])
