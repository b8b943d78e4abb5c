"""gram and mix on a GPU, by CUDA and by Triton: against float64, and what only a GPU can get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.gram import gram
from mmfl_fast.kernels.mix import mix

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("nan_in_fresh_memory", "gpu_kernels")]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [
    "contiguous", "slice", "every second", "transposed", "expanded", "two strides", "segments", "two stacks",
    "state dicts",
]  # fmt: skip
# Around the tiles of 16, 32 and 64 rows, the groups of 32, and enough columns for several splits.
GRAM_SHAPES = [(1, 1), (2, 3), (16, 513), (17, 4099), (33, 2049), (64, 70_001), (65, 3000), (200, 1111)]
MIX_SHAPES = [
    (1, 1, 1), (1, 7, 3), (2, 8, 63), (3, 9, 1025), (9, 64, 511), (16, 64, 511), (5, 65, 4097),
    (70, 200, 3001), (1, 200, 30_001),
]  # fmt: skip


def exact_gram(matrix: Tensor, mean_origin: bool, centre_rows: bool) -> tuple[Tensor, Tensor]:
    rows = matrix.double()
    if mean_origin:
        rows = rows - rows.mean(dim=0)
    means = rows.mean(dim=1) if centre_rows else rows.new_zeros(len(rows))
    rows = rows - means[:, None]
    return rows @ rows.T, means


def exact_mix(matrix: Tensor, rows: Tensor, offset: Tensor | None, centre: bool) -> Tensor:
    rows = rows.double()
    if centre:
        rows = rows - rows[(matrix != 0).any(dim=0)].mean(dim=0)
    if offset is not None:
        rows = rows - offset[:, None]
    return matrix @ rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), GRAM_SHAPES)
def test_gram(rows: int, columns: int, dtype: torch.dtype, assert_accurate: Any) -> None:
    x = (torch.randn(rows, columns) + torch.randn(columns)).to("cuda", dtype)
    for mean_origin in (False, True):
        for centre_rows in (False, True):
            exact, exact_means = exact_gram(x, mean_origin, centre_rows)
            plain = x - x.mean(dim=0) if mean_origin else x
            plain = plain - plain.mean(dim=1, keepdim=True) if centre_rows else plain
            products, means = gram([x], 1, True, [], mean_origin, centre_rows)
            assert products.is_cuda
            assert_accurate(products, plain @ plain.T, exact, 1e-13 if dtype == torch.float64 else 2e-6)
            torch.testing.assert_close(means, exact_means, rtol=1e-5, atol=2e-6)
            assert torch.equal(products, products.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "rows", "columns"), MIX_SHAPES)
def test_mix(outputs: int, rows: int, columns: int, dtype: torch.dtype, assert_accurate: Any) -> None:
    x = torch.randn(rows, columns).to("cuda", dtype)
    matrix = torch.rand(outputs, rows, dtype=torch.float64, device="cuda")
    offset = torch.randn(rows, dtype=torch.float64, device="cuda")
    for row_offset, centre in ((None, False), (offset, True)):
        exact = exact_mix(matrix, x, row_offset, centre)
        plain = exact_mix(matrix.to(dtype).double(), x, row_offset, centre).to(dtype)
        (ours,) = mix([x], 1, True, matrix, row_offset, centre)
        assert_accurate(ours, plain, exact, 1e-13 if dtype == torch.float64 else 2e-6)


def test_gram_in_tf32_is_less_accurate_and_no_more() -> None:
    x = torch.randn(64, 20_000, device="cuda")
    exact, _ = exact_gram(x, True, False)
    errors = []
    for tf32 in (False, True):
        products, _ = gram([x], 1, True, [], True, False, tf32)
        errors.append(float((products - exact).abs().max() / exact.max()))
    assert errors[0] < 2e-6
    assert errors[0] < errors[1] < 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(layout: str, dtype: torch.dtype, arrange: Any) -> None:
    rows = arrange(layout, torch.randn(6, 4200).to("cuda", dtype))
    for centre_rows in (False, True):
        products, _ = gram(*rows.arguments, [], True, centre_rows)
        exact, _ = exact_gram(rows.matrix, True, centre_rows)
        torch.testing.assert_close(products, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()) + 1e-9)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for outputs in (1, 5):
        matrix = torch.rand(outputs, 6, dtype=torch.float64, device="cuda")
        segments = mix(*rows.arguments, matrix, None, False)
        ours = torch.cat([segment.reshape(outputs, -1).double() for segment in segments], dim=1)
        torch.testing.assert_close(ours, matrix @ rows.matrix, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rows", [6, 70])
def test_non_finite_rows_spoil_only_themselves(rows: int, value: float) -> None:
    x = torch.randn(rows, 1500, device="cuda")
    x[0, 700] = x[rows - 1, 1499] = value
    good = list(range(1, rows - 1))
    products, means = gram([x], 1, True, [], True, True)
    exact, exact_means = exact_gram(x[1:-1], True, True)
    torch.testing.assert_close(products[1:-1, 1:-1], exact, rtol=0, atol=2e-6 * float(exact.abs().max()))
    torch.testing.assert_close(means[good], exact_means, rtol=1e-5, atol=1e-6)
    assert products[[0, rows - 1]].isnan().all()
    assert products[:, [0, rows - 1]].isnan().all()
    for outputs in (2, 20):
        matrix = torch.ones(outputs, rows, dtype=torch.float64, device="cuda")
        matrix[:, [0, rows - 1]] = 0
        (mixed,) = mix([x], 1, True, matrix, None, True)
        assert mixed.isfinite().all()


def test_equal_rows_and_no_elements() -> None:
    x = torch.randn(1, 777, device="cuda").expand(40, 777)
    assert (gram([x], 1, True, [], True, False)[0] == 0).all()
    empty = torch.empty(3, 0, device="cuda")
    products, means = gram([empty], 1, True, [], True, True)
    assert (products == 0).all()
    assert (means == 0).all()
    (mixed,) = mix([empty], 1, True, torch.ones(2, 3, dtype=torch.float64).cuda(), None, False)
    assert mixed.shape == (2, 0)


def _gram_and_mix(x: Tensor) -> list[Tensor]:
    matrix = torch.ones(9, len(x), dtype=torch.float64, device=x.device)
    products, means = gram([x], 1, True, [], True, True)
    return [products, means, *mix([x], 1, True, matrix, means, True)]


@pytest.mark.parametrize("rows", [16, 100])
def test_same_bits_on_every_run_and_stream(rows: int) -> None:
    x = torch.randn(rows, 50_000, device="cuda")
    first, second = _gram_and_mix(x), _gram_and_mix(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        third = _gram_and_mix(x)
    torch.cuda.synchronize()
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("rows", [20, 70])
def test_a_graph_can_hold_them(rows: int) -> None:
    x = torch.randn(rows, 3000, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _gram_and_mix(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _gram_and_mix(x)
    x.copy_(torch.randn(rows, 3000, device="cuda"))
    graph.replay()
    for ours, plain in zip(captured, _gram_and_mix(x), strict=True):
        assert torch.equal(ours, plain)


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(5, 900, device="cuda:1")
    products, *_ = _gram_and_mix(x)
    assert products.device == x.device
    assert torch.cuda.current_device() == 0


def test_more_than_2_to_the_31_elements() -> None:
    x = torch.randn(3, 1 << 30, device="cuda", dtype=torch.bfloat16)
    pieces = [exact_gram(piece, False, False)[0] for piece in x.split(1 << 26, dim=1)]
    exact = torch.stack(pieces).sum(dim=0)
    products, _ = gram([x], 1, True, [], False, False)
    torch.testing.assert_close(products, exact, rtol=0, atol=1e-5 * float(exact.max()))
    matrix = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64, device="cuda")
    (mixed,) = mix([x], 1, True, matrix, None, False)
    end = x[:, -1000:].double()
    torch.testing.assert_close(mixed[:, -1000:].double(), matrix @ end, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("mean_origin", [False, True])
def test_gradients(mean_origin: bool) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, device="cuda", requires_grad=True)
    y = torch.randn(4, 2, 2, dtype=torch.float64, device="cuda", requires_grad=True)

    def outputs(*blocks: Tensor) -> tuple[Tensor, Tensor]:
        return gram(blocks, 2, True, [], mean_origin, True)

    assert torch.autograd.gradcheck(outputs, (x, y))
    assert torch.autograd.gradgradcheck(outputs, (x, y))


def test_gradient_is_that_of_the_cpu(gpu_kernels: str) -> None:
    x, upstream = torch.randn(9, 2001), torch.randn(9, 9, dtype=torch.float64)
    gradients = []
    for device, backend in (("cpu", "native"), ("cuda", gpu_kernels)):
        leaf = x.to(device).requires_grad_()
        with use_backend(backend):
            (gram([leaf], 1, True, [], True, True)[0] * upstream.to(device)).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


# Both are raised by torch.compile about itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", ["grad", "vmap", "compile"])
def test_transforms(transform: str) -> None:
    def scalar(x: Tensor) -> Tensor:
        return gram([torch.tanh(x)], 1, True, [], True, True)[0].square().sum()

    x = torch.randn(3, 4, 50, dtype=torch.float64)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "grad": lambda x: torch.func.grad(scalar)(x[0]),
        "vmap": torch.func.vmap(torch.func.grad(scalar)),
        "compile": lambda x: torch.compile(scalar, fullgraph=True, backend="aot_eager")(x[0]),
    }
    ours = calls[transform](x.cuda()).cpu()
    with use_backend("native"):
        expected = calls[transform](x)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_opcheck() -> None:
    x = torch.randn(3, 4, device="cuda", requires_grad=True)
    matrix = torch.rand(2, 3, dtype=torch.float64, device="cuda", requires_grad=True)
    torch.library.opcheck(torch.ops.mmfl_fast.gram.default, ([x], 1, True, [], True, True, False))
    torch.library.opcheck(torch.ops.mmfl_fast.mix.default, ([x], 1, True, matrix, None, False))
