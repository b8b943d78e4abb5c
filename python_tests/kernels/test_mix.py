from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfl_fast import _C
from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.mix import mix, reference

pytestmark = pytest.mark.usefixtures("nan_in_fresh_memory")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [
    "contiguous", "slice", "every second", "transposed", "expanded", "two strides", "segments", "two stacks",
    "state dicts",
]  # fmt: skip
# Around the register tile (4 outputs, 64 columns), the group (8 rows) and the panel (64 rows).
SHAPES = [(1, 1, 1), (1, 7, 3), (2, 8, 63), (3, 9, 65), (4, 64, 511), (5, 65, 4097), (9, 130, 129)]


def exact_mix(matrix: Tensor, rows: Tensor, offset: Tensor | None = None, centre: bool = False) -> Tensor:
    """From the definition, in float64."""
    rows = rows.double()
    takes_part = (matrix != 0).any(dim=0)
    if centre:
        rows = rows - rows[takes_part].mean(dim=0)
    if offset is not None:
        rows = rows - offset[:, None]
    return matrix @ rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "rows", "columns"), SHAPES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_matches_float64(
    outputs: int, rows: int, columns: int, dtype: torch.dtype, backend: str, assert_accurate: Any
) -> None:
    x = torch.randn(rows, columns).to(dtype)
    dense = torch.rand(outputs, rows, dtype=torch.float64)
    sparse = torch.where(torch.rand(outputs, rows) < 0.6, 0.0, dense)
    offset = torch.randn(rows, dtype=torch.float64)
    for matrix in (dense, sparse):
        for row_offset in (None, offset):
            for centre in (False, True):
                if centre and not (matrix != 0).any():
                    continue
                exact = exact_mix(matrix, x, row_offset, centre)
                plain = exact_mix(matrix.to(dtype).double(), x, row_offset, centre).to(dtype)
                with use_backend(backend):
                    (ours,) = mix([x], 1, True, matrix, row_offset, centre)
                assert ours.dtype == dtype
                assert_accurate(ours, plain, exact, 1e-13 if dtype == torch.float64 else 2e-6)


def test_error_is_at_most_twice_that_of_torch(assert_accurate: Any) -> None:
    x, matrix = torch.rand(1000, 501), torch.rand(3, 1000, dtype=torch.float64)
    (ours,) = mix([x], 1, True, matrix, None, False)
    assert_accurate(ours, matrix.float() @ x, matrix @ x.double(), 1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outputs", [1, 5])
def test_layouts(layout: str, dtype: torch.dtype, backend: str, outputs: int, arrange: Any) -> None:
    rows = arrange(layout, torch.randn(6, 4200).to(dtype))
    matrix = torch.rand(outputs, 6, dtype=torch.float64)
    with use_backend(backend):
        segments = mix(*rows.arguments, matrix, None, False)
    shapes = [block.shape[1:] if rows.stacked else block.shape for block in rows.blocks[: rows.segments]]
    assert [segment.shape[1:] for segment in segments] == shapes
    ours = torch.cat([segment.reshape(outputs, -1).double() for segment in segments], dim=1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours, matrix @ rows.matrix, rtol=tolerance, atol=4 * tolerance)


def test_segments_of_different_dtypes() -> None:
    blocks = [torch.randn(3, 5), torch.randn(3, 2, 2).half(), torch.randn(3, dtype=torch.float64)]
    matrix = torch.rand(2, 3, dtype=torch.float64)
    outputs = mix(blocks, 3, True, matrix, None, False)
    assert [(tuple(y.shape), y.dtype) for y in outputs] == [
        ((2, 5), torch.float32),
        ((2, 2, 2), torch.float16),
        ((2,), torch.float64),
    ]
    for block, output in zip(blocks, outputs, strict=True):
        exact = (matrix @ block.double().reshape(3, -1)).reshape(output.shape)
        torch.testing.assert_close(output.double(), exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_row_of_weight_zero_is_not_read(backend: str) -> None:
    x = torch.randn(6, 300)
    x[1] = torch.nan
    x[4, 7] = torch.inf
    matrix = torch.rand(5, 6, dtype=torch.float64)
    matrix[:, 1] = 0
    matrix[:4, 4] = 0
    with use_backend(backend):
        (mixed,) = mix([x], 1, True, matrix, None, False)
    torch.testing.assert_close(mixed[:4], exact_mix(matrix[:4], x.nan_to_num(0, 0, 0)).float())
    assert not mixed[4, 7].isfinite()
    other = torch.arange(300) != 7
    torch.testing.assert_close(
        mixed[4, other], exact_mix(matrix[4:], x[:, other].nan_to_num(0, 0, 0))[0].float()
    )
    with use_backend(backend):
        (centred,) = mix([x], 1, True, matrix[:4], None, True)
    keep = [0, 2, 3, 5]
    torch.testing.assert_close(centred, exact_mix(matrix[:4, keep], x[keep], centre=True).float())


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("centre", [False, True])
def test_no_row_takes_part(backend: str, centre: bool) -> None:
    matrix = torch.zeros(2, 3, dtype=torch.float64)
    with use_backend(backend):
        (mixed,) = mix([torch.full((3, 70), torch.nan)], 1, True, matrix, None, centre)
    assert torch.equal(mixed, torch.zeros(2, 70))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_no_elements_and_no_outputs(backend: str) -> None:
    with use_backend(backend):
        (empty,) = mix([torch.empty(3, 0)], 1, True, torch.ones(2, 3, dtype=torch.float64), None, False)
        (none,) = mix([torch.ones(3, 4)], 1, True, torch.ones(0, 3, dtype=torch.float64), None, False)
    assert empty.shape == (2, 0)
    assert none.shape == (0, 4)


def test_differences_of_nearly_equal_rows_keep_their_accuracy() -> None:
    x = torch.randn(2000) + 1e-4 * torch.randn(6, 2000)
    matrix = torch.randn(4, 6, dtype=torch.float64)
    matrix -= matrix.mean(dim=1, keepdim=True)
    (ours,) = mix([x], 1, True, matrix, None, True)
    exact = matrix @ x.double()
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-6 * float(exact.abs().max()))


def test_same_bits_for_every_number_of_threads(set_threads: Any) -> None:
    x, matrix = torch.randn(70, 30_000), torch.randn(6, 70, dtype=torch.float64)
    results = []
    for threads in (1, 2, 3, 8, 8):
        set_threads(threads)
        results.append(mix([x], 1, True, matrix, None, True)[0])
    assert all(torch.equal(result, results[0]) for result in results[1:])


_ON_ANOTHER_LEVEL = """
import sys, torch
from mmfl_fast import _C
from mmfl_fast.kernels.mix import mix
assert _C.simd_level() == sys.argv[1], _C.simd_level()
for dtype, tolerance in (
    (torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)
):
    x = torch.randn(37, 1111).to(dtype)
    for outputs in (1, 6):
        matrix = torch.rand(outputs, 37, dtype=torch.float64)
        (mixed,) = mix([x], 1, True, matrix, None, False)
        torch.testing.assert_close(mixed.double(), matrix @ x.double(), rtol=tolerance, atol=10 * tolerance)
"""


@pytest.mark.parametrize("level", ["portable", "avx2"])
def test_narrower_simd_levels(level: str, level_environment: Callable[[str], dict[str, str]]) -> None:
    if level == "avx2" and _C.simd_level() == "portable":
        pytest.skip("this processor has no AVX2")
    script = [sys.executable, "-c", _ON_ANOTHER_LEVEL, level]
    subprocess.run(script, env=level_environment(level), check=True)


@pytest.mark.parametrize("centre", [False, True])
def test_gradients(centre: bool) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def outputs(x: Tensor, y: Tensor, matrix: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
        return tuple(mix([x, y], 2, True, matrix, offset, centre))

    assert torch.autograd.gradcheck(outputs, (x, y, matrix, offset))
    assert torch.autograd.gradgradcheck(outputs, (x, y, matrix, offset))


def test_gradient_of_state_dicts_and_unused_outputs() -> None:
    parts = [torch.randn(shape, requires_grad=True) for _ in range(3) for shape in ((4,), (2, 3))]
    matrix = torch.rand(2, 3, dtype=torch.float64)
    first, _unused = mix(parts, 2, False, matrix, None, False)
    upstream = torch.randn(2, 4)
    first.backward(upstream)
    for k in range(3):
        torch.testing.assert_close(parts[2 * k].grad, (matrix[:, k].float() @ upstream))
        assert torch.equal(parts[2 * k + 1].grad, torch.zeros(2, 3))


def test_a_zero_weight_has_a_gradient() -> None:
    x = torch.randn(3, 5)
    matrix = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    mix([x], 1, True, matrix, None, False)[0].sum().backward()
    torch.testing.assert_close(matrix.grad, x.double().sum(dim=1)[None], rtol=1e-6, atol=1e-6)


def test_expanded_upstream_gradient() -> None:
    x = torch.randn(3, 50, requires_grad=True)
    matrix = torch.rand(2, 3, dtype=torch.float64)
    mix([x], 1, True, matrix, None, False)[0].backward(torch.tensor(2.0).expand(2, 50))
    torch.testing.assert_close(x.grad, (2 * matrix.sum(dim=0)).float()[:, None].expand(3, 50))


def _scalar(implementation: Any, x: Tensor, w: Tensor) -> Tensor:
    mixed = implementation([torch.tanh(x * w)], 1, True, w, w[:, 0], True)[0]
    return (mixed * torch.arange(mixed.numel(), dtype=torch.float64).reshape(mixed.shape)).square().sum()


def _native(x: Tensor, w: Tensor) -> Tensor:
    return _scalar(mix, x, w)


def _plain(x: Tensor, w: Tensor) -> Tensor:
    return _scalar(reference.mix, x, w)


_TRANSFORMS = {
    "grad": lambda f, x, w: torch.func.grad(f)(x[0], w),
    "vmap": lambda f, x, w: torch.func.vmap(f, (0, None))(x, w),
    "vmap of grad": lambda f, x, w: torch.func.vmap(torch.func.grad(f, argnums=1), (0, None))(x, w),
    "vmap, other axis": lambda f, x, w: torch.func.vmap(f, (2, None))(x.permute(1, 2, 0), w),
    "grad of grad": lambda f, x, w: torch.func.grad(lambda x: torch.func.grad(f)(x, w).square().sum())(x[0]),
    "jacrev": lambda f, x, w: torch.func.jacrev(f)(x[0], w),
}


@pytest.mark.parametrize("transform", _TRANSFORMS)
def test_torch_func(transform: str) -> None:
    x, w = torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    ours, plain = _TRANSFORMS[transform](_native, x, w), _TRANSFORMS[transform](_plain, x, w)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


# Both are raised by torch.compile about itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method.*is deprecated:DeprecationWarning")
def test_compile() -> None:
    x, w = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(_native, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w), _plain(x, w))
    leaf, twin = w.clone().requires_grad_(), w.clone().requires_grad_()
    compiled(x, leaf).backward()
    _plain(x, twin).backward()
    torch.testing.assert_close(leaf.grad, twin.grad)
    by_func = torch.compile(torch.func.grad(_native, argnums=1), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(by_func(x, w), twin.grad)


@pytest.mark.parametrize("centre", [False, True])
def test_opcheck(centre: bool) -> None:
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 2, 2, requires_grad=True)
    matrix = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    offset = torch.rand(3, dtype=torch.float64, requires_grad=True)
    arguments = ([x, y], 2, True, matrix, offset, centre)
    torch.library.opcheck(torch.ops.mmfl_fast.mix.default, arguments)


def test_the_extension_refuses_bad_arguments(without_memory: Any) -> None:
    x, y = torch.randn(2, 3), torch.empty(1, 3)
    matrix = torch.rand(1, 2, dtype=torch.float64)

    def call(x: Tensor = x, matrix: Tensor = matrix, offset: Tensor | None = None, y: Tensor = y) -> None:
        _C.mix([x], 1, True, matrix, offset, False, [y], 1)

    call()
    with pytest.raises(RuntimeError, match="null pointer"):
        call(x=without_memory(2, 3))
    with pytest.raises(RuntimeError, match="null pointer"):
        call(y=without_memory(1, 3))
    with pytest.raises(RuntimeError, match="null pointer"):
        call(matrix=without_memory(1, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="size"):
        call(matrix=torch.rand(1, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="size"):
        call(offset=torch.rand(3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="size"):
        call(y=torch.empty(1, 4))
    with pytest.raises(RuntimeError, match="dtype"):
        call(y=y.int())
    with pytest.raises(RuntimeError, match="dtype"):
        call(matrix=matrix.float())
