"""The Triton kernels on a GPU: against float64 and the CUDA kernels, and what only a GPU gets wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfl_fast.kernels.backend import backends, use_backend
from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.gram import gram
from mmfl_fast.kernels.mix import mix
from mmfl_fast.kernels.prototype_loss import prototype_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("nan_in_fresh_memory", "_triton"),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="needs triton, which is not installed"
    ),
]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [
    "contiguous", "slice", "every second", "transposed", "expanded", "two strides", "segments", "two stacks",
    "state dicts",
]  # fmt: skip
# Around the tiles of 16, 32 and 64 rows, pairs of groups, and enough columns for several splits and runs.
GRAM_SHAPES = [(1, 1), (2, 3), (16, 513), (17, 4099), (33, 2049), (64, 70_001), (65, 3000), (200, 1111)]
MIX_SHAPES = [(1, 1, 1), (1, 7, 3), (2, 8, 63), (3, 9, 1025), (16, 64, 511), (9, 65, 4097), (70, 200, 3001)]
NO_OFFSET = torch.empty(0, dtype=torch.float64)


@pytest.fixture
def _triton() -> Any:
    with use_backend("triton"):
        yield


def exact_gram(matrix: Tensor, mean_origin: bool, centre_rows: bool) -> tuple[Tensor, Tensor]:
    rows = matrix.double()
    if mean_origin:
        rows = rows - rows.mean(dim=0)
    means = rows.mean(dim=1) if centre_rows else rows.new_zeros(len(rows))
    rows = rows - means[:, None]
    return rows @ rows.T, means


def exact_mix(matrix: Tensor, rows: Tensor, offset: Tensor, centre: bool) -> Tensor:
    rows = rows.double()
    if centre:
        rows = rows - rows[(matrix != 0).any(dim=0)].mean(dim=0)
    if len(offset) > 0:
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


def test_gram_in_tf32_is_that_and_no_worse() -> None:
    x = torch.randn(64, 20_000, device="cuda")
    exact, _ = exact_gram(x, True, False)
    errors = []
    for tf32 in (False, True):
        products, _ = gram([x], 1, True, [], True, False, tf32)
        errors.append(float((products - exact).abs().max() / exact.max()))
    assert errors[0] < 2e-6
    assert errors[0] < errors[1] < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "rows", "columns"), MIX_SHAPES)
def test_mix(outputs: int, rows: int, columns: int, dtype: torch.dtype, assert_accurate: Any) -> None:
    x = torch.randn(rows, columns).to("cuda", dtype)
    matrix = torch.rand(outputs, rows, dtype=torch.float64, device="cuda")
    offset = torch.randn(rows, dtype=torch.float64, device="cuda")
    for row_offset, centre in ((NO_OFFSET.cuda(), False), (offset, True)):
        exact = exact_mix(matrix, x, row_offset, centre)
        plain = exact_mix(matrix.to(dtype).double(), x, row_offset, centre).to(dtype)
        (ours,) = mix([x], 1, True, matrix, row_offset, centre)
        assert_accurate(ours, plain, exact, 1e-13 if dtype == torch.float64 else 2e-6)


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
        segments = mix(*rows.arguments, matrix, NO_OFFSET.cuda(), False)
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
        (mixed,) = mix([x], 1, True, matrix, NO_OFFSET.cuda(), True)
        assert mixed.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "rows", "dims"), [(3, 5, 7), (5, 70, 33), (17, 129, 64)])
def test_cross_gram_sq(count: int, rows: int, dims: int, dtype: torch.dtype) -> None:
    blocks = [torch.randn(count, rows, dims).to("cuda", dtype), torch.randn(2, rows, 9).to("cuda", dtype)]
    for options in ({}, {"mean_columns": True}, {"normalise_rows": True, "mean_columns": True}):
        ours = cross_gram_sq(blocks, **options)
        with use_backend("reference"):
            exact = cross_gram_sq([block.double() for block in blocks], **options)
        tolerance = 1e-12 if dtype == torch.float64 else 4e-6
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance * float(exact.max()))


PROTOTYPE_SHAPES = [
    (1, 5, 7, 3, 1, 0),
    (3, 70, 384, 100, 1, 3),
    (40, 64, 128, 10, 40, 40),
    (1, 4096, 256, 1000, 1, 0),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("clients", "rows", "dims", "classes", "groups", "masks"), PROTOTYPE_SHAPES)
def test_prototype_loss(
    clients: int, rows: int, dims: int, classes: int, groups: int, masks: int, dtype: torch.dtype
) -> None:
    features = torch.randn(clients, rows, dims).to("cuda", dtype)
    prototypes = torch.randn(groups, classes, dims).to("cuda", dtype)
    labels = torch.randint(0, classes, (clients, rows), device="cuda")
    labels[:, 1] = -100
    mask = torch.rand(masks, classes, device="cuda") > 0.3 if masks else None
    upstream = torch.randn(rows, device="cuda").expand(clients, rows)
    if dtype == torch.float64 and tuple(map(int, version("triton").split(".")[:2])) < (3, 9):
        with use_backend("triton"), pytest.raises(NotImplementedError, match=r"needs Triton 3\.9"):
            prototype_loss(features, labels, prototypes, mask, 0.1, True)
        return
    results = []
    for backend, kind in (("triton", dtype), ("reference", torch.float64)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in (features, prototypes)]
        with use_backend(backend):
            loss = prototype_loss(leaves[0], labels, leaves[1], mask, 0.1, True)
            results.append([loss, *torch.autograd.grad((loss * upstream).sum(), leaves)])
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for ours, exact in zip(*results, strict=True):
        bound = tolerance * float(exact.abs().max())
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=bound)


def test_wrong_labels_are_nan_and_read_nothing() -> None:
    features = torch.randn(1, 3, 8, device="cuda", requires_grad=True)
    prototypes = torch.randn(1, 4, 8, device="cuda")
    labels = torch.tensor([[1, 1 << 40, -7]], device="cuda")
    loss = prototype_loss(features, labels, prototypes, None, 0.1, True)
    assert loss.isnan().tolist() == [[False, True, True]]
    (gradient,) = torch.autograd.grad(loss.nansum(), features)
    assert (gradient[0, 1:] == 0).all()


def _everything(x: Tensor) -> list[Tensor]:
    matrix = torch.ones(9, len(x), dtype=torch.float64, device=x.device)
    products, means = gram([x], 1, True, [], True, True)
    views = x[:, :3000].reshape(len(x), 60, 50)
    labels = torch.arange(len(x), device=x.device)[None] % 7
    features = x[None, :, :50].detach().requires_grad_()
    loss = prototype_loss(features, labels, x[None, :7, 50:100], None, 0.1, True)
    return [
        products,
        means,
        *mix([x], 1, True, matrix, means, True),
        cross_gram_sq([views], mean_columns=True),
        loss.detach(),
        *torch.autograd.grad(loss.sum(), features),
    ]


@pytest.mark.parametrize("rows", [16, 100])
def test_same_bits_on_every_run_and_stream(rows: int) -> None:
    x = torch.randn(rows, 50_000, device="cuda")
    first, second = _everything(x), _everything(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        third = _everything(x)
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
        _everything(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _everything(x)
    x.copy_(torch.randn(rows, 3000, device="cuda"))
    graph.replay()
    for ours, plain in zip(captured, _everything(x), strict=True):
        assert torch.equal(ours, plain)


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(9, 3000, device="cuda:1")
    products, *_ = _everything(x)
    assert products.device == x.device
    assert torch.cuda.current_device() == 0


def test_more_than_2_to_the_31_elements() -> None:
    x = torch.randn(3, 1 << 30, device="cuda", dtype=torch.bfloat16)
    pieces = [exact_gram(piece, False, False)[0] for piece in x.split(1 << 26, dim=1)]
    exact = torch.stack(pieces).sum(dim=0)
    products, _ = gram([x], 1, True, [], False, False)
    torch.testing.assert_close(products, exact, rtol=0, atol=1e-5 * float(exact.max()))
    matrix = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64, device="cuda")
    (mixed,) = mix([x], 1, True, matrix, NO_OFFSET.cuda(), False)
    end = x[:, -1000:].double()
    torch.testing.assert_close(mixed[:, -1000:].double(), matrix @ end, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif("cuda" not in backends()["native"].devices, reason="needs the extension built with CUDA")
@pytest.mark.parametrize("rows", [16, 70])
def test_the_cuda_kernels_agree(rows: int) -> None:
    x = torch.randn(rows, 30_001, device="cuda")
    matrix = torch.rand(9, rows, dtype=torch.float64, device="cuda")
    results = []
    for backend in ("triton", "native"):
        with use_backend(backend):
            results.append(
                [*gram([x], 1, True, [], True, True), *mix([x], 1, True, matrix, NO_OFFSET.cuda(), True)]
            )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("mean_origin", [False, True])
def test_gradients_of_gram(mean_origin: bool) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, device="cuda", requires_grad=True)
    y = torch.randn(4, 2, 2, dtype=torch.float64, device="cuda", requires_grad=True)

    def outputs(*blocks: Tensor) -> tuple[Tensor, Tensor]:
        return gram(blocks, 2, True, [], mean_origin, True)

    assert torch.autograd.gradcheck(outputs, (x, y))
    assert torch.autograd.gradgradcheck(outputs, (x, y))


# Both are raised by torch.compile about itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", ["grad", "vmap", "compile"])
def test_transforms(transform: str) -> None:
    def scalar(x: Tensor) -> Tensor:
        return gram([torch.tanh(x)], 1, True, [], True, True)[0].square().sum()

    x = torch.randn(3, 4, 50, dtype=torch.float64, device="cuda")
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "grad": lambda x: torch.func.grad(scalar)(x[0]),
        "vmap": torch.func.vmap(torch.func.grad(scalar)),
        "compile": lambda x: torch.compile(scalar, fullgraph=True, backend="aot_eager")(x[0]),
    }
    ours = calls[transform](x)
    with use_backend("reference"):
        exact = torch.stack([torch.func.grad(scalar)(part) for part in x])
        value = scalar(x[0])
    expected = {"grad": exact[0], "vmap": exact, "compile": value}[transform]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
