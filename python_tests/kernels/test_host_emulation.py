"""The bodies of the CUDA kernels, run on the CPU under AddressSanitizer and UBSan, against NumPy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

# In the order of their codes in csrc/common/dtype.h.
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
Array = npt.NDArray[Any]
Run = Callable[..., npt.NDArray[np.float64]]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def run_gram(compile_kernels: Any) -> Run:
    program: Run = compile_kernels("gram", sanitized=True)
    return program


@pytest.fixture(scope="module")
def run_mix(compile_kernels: Any) -> Run:
    program: Run = compile_kernels("mix", sanitized=True)
    return program


def integers(*values: int) -> bytes:
    return np.array(values, dtype=np.int64).tobytes()


def packed(segments: Sequence[torch.Tensor], stride: int = 1, misaligned: bool = False) -> bytes:
    """Tensors [K, width] as the programs read rows; what lies between their elements is NaN."""
    case = integers(len(segments[0]), len(segments))
    for rows in segments:
        spread = rows.new_full((*rows.shape, stride), torch.nan)
        spread[:, :, 0] = rows
        # After the last element nothing follows, so that a read behind it is seen.
        last = rows.numel() * stride - stride + 1 if rows.numel() > 0 else 0
        memory = spread.flatten()[:last].view(torch.uint8).numpy().tobytes()
        front = rows.element_size() if misaligned else 0
        case += integers(rows.shape[1], DTYPES.index(rows.dtype), stride, front, front + len(memory))
        case += bytes(front) + memory
    return case


def exact_gram(
    segments: Sequence[torch.Tensor], origin: Sequence[torch.Tensor], mean_origin: bool, centre_rows: bool
) -> tuple[Array, Array]:
    rows = np.concatenate([part.double().numpy() for part in segments], axis=1)
    if origin:
        rows = rows - np.concatenate([part.double().numpy() for part in origin], axis=1)
    if mean_origin:
        rows = rows - rows[np.isfinite(rows).all(axis=1)].mean(axis=0)
    means = rows.mean(axis=1) if centre_rows else np.zeros(len(rows))
    rows = rows - means[:, None]
    return rows @ rows.T, means


def emulated_gram(
    run: Run,
    segments: Sequence[torch.Tensor],
    origin: Sequence[torch.Tensor] = (),
    mean_origin: bool = False,
    centre_rows: bool = False,
    backward: bool = False,
    tf32: bool = False,
    **layout: Any,
) -> tuple[Array, Array]:
    case = integers(mean_origin, centre_rows, len(origin) > 0, tf32, backward) + packed(segments, **layout)
    result = run(case + packed(origin) if origin else case)
    count = len(segments[0])
    return result[: count * count].reshape(count, count), result[count * count :]


def assert_gram(result: tuple[Array, Array], exact: tuple[Array, Array], tolerance: float) -> None:
    np.testing.assert_allclose(result[0], exact[0], rtol=0, atol=tolerance * np.abs(exact[0]).max())
    np.testing.assert_allclose(result[1], exact[1], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(result[0], result[0].T)


# Around the tiles of 16, 32 and 64 rows, the groups of 32, and the columns of a step.
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 67), (16, 1030), (17, 129), (33, 65), (65, 40)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gram(rows: int, columns: int, dtype: torch.dtype, run_gram: Run) -> None:
    x = (torch.randn(rows, columns) + torch.randn(columns)).to(dtype)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    for mean_origin, centre_rows in ((False, False), (True, False), (True, True)):
        options = {"mean_origin": mean_origin, "centre_rows": centre_rows}
        exact = exact_gram([x], [], **options)
        assert_gram(emulated_gram(run_gram, [x], **options), exact, tolerance)


# Two groups of 128 rows, the second of which ends within a tile; columns that are copied, some that are not.
@pytest.mark.parametrize("layout", [{}, {"misaligned": True}])
def test_gram_of_pairs_of_groups(layout: dict[str, Any], run_gram: Run) -> None:
    segments = [torch.randn(150, 36) + torch.randn(36), torch.randn(150, 0), torch.randn(150, 16).bfloat16()]
    exact = exact_gram(segments, [], True, True)
    ours = emulated_gram(run_gram, segments, mean_origin=True, centre_rows=True, **layout)
    assert_gram(ours, exact, 1e-6)


def test_gram_of_many_splits(run_gram: Run) -> None:
    x = torch.randn(2, 17_000)
    assert_gram(emulated_gram(run_gram, [x], centre_rows=True), exact_gram([x], [], False, True), 1e-6)


@pytest.mark.parametrize("rows", [7, 40, 66])
def test_gram_in_tf32_rounds_factors(rows: int, run_gram: Run) -> None:
    x = torch.randn(rows, 90)
    exact = exact_gram([x], [], True, False)
    ours = emulated_gram(run_gram, [x], mean_origin=True, tf32=True)
    assert_gram(ours, exact, 1e-3)
    with pytest.raises(AssertionError):
        assert_gram(ours, exact, 1e-6)


@pytest.mark.parametrize("layout", [{"stride": 3}, {"misaligned": True}, {"stride": 2, "misaligned": True}])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gram_of_any_layout(layout: dict[str, Any], dtype: torch.dtype, run_gram: Run) -> None:
    segments = [torch.randn(5, width).to(dtype) for width in (33, 1, 0, 130)]
    origin = [torch.randn(1, part.shape[1]).to(dtype) for part in segments]
    exact = exact_gram(segments, origin, False, True)
    ours = emulated_gram(run_gram, segments, origin, centre_rows=True, **layout)
    assert_gram(ours, exact, 1e-13 if dtype == torch.float64 else 1e-6)


def test_gram_of_segments_of_different_dtypes(run_gram: Run) -> None:
    narrow = [torch.randn(4, 30), torch.randn(4, 20).bfloat16(), torch.randn(4, 24).half()]
    for segments, tolerance in ((narrow, 1e-6), ([*narrow, torch.randn(4, 9).double()], 1e-13)):
        exact = exact_gram(segments, [], True, True)
        assert_gram(emulated_gram(run_gram, segments, mean_origin=True, centre_rows=True), exact, tolerance)


@pytest.mark.parametrize("rows", [6, 66])
def test_gram_keeps_the_accuracy_of_small_differences(rows: int, run_gram: Run) -> None:
    x = torch.randn(300) + 1e-5 * torch.randn(rows, 300)
    exact = exact_gram([x], [], True, True)
    assert_gram(emulated_gram(run_gram, [x], mean_origin=True, centre_rows=True), exact, 1e-6)


def test_gram_of_rows_with_a_large_mean(run_gram: Run) -> None:
    x = torch.randn(5, 700).mul(0.5) + torch.arange(5)[:, None] * 1000.0 + 4000
    exact = exact_gram([x], [], False, True)
    products, means = emulated_gram(run_gram, [x], centre_rows=True)
    np.testing.assert_allclose(products, exact[0], rtol=0, atol=1e-5 * exact[0].max())
    np.testing.assert_allclose(means, exact[1], rtol=1e-9)


@pytest.mark.parametrize("rows", [3, 40, 70])
def test_gram_of_equal_rows_is_zero(rows: int, run_gram: Run) -> None:
    x = torch.randn(1, 77).expand(rows, 77)
    products, _ = emulated_gram(run_gram, [x], mean_origin=True)
    assert (products == 0).all()


@pytest.mark.parametrize("rows", [6, 70])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("mean_origin", [False, True])
def test_gram_of_non_finite_rows(mean_origin: bool, value: float, rows: int, run_gram: Run) -> None:
    x = torch.randn(rows, 90)
    x[0, 70] = value
    x[rows - 1, 3] = -value
    good = np.arange(1, rows - 1)
    products, means = emulated_gram(run_gram, [x], mean_origin=mean_origin, centre_rows=True)
    exact, exact_means = exact_gram([x[1:-1]], [], mean_origin, True)
    np.testing.assert_allclose(products[np.ix_(good, good)], exact, rtol=0, atol=1e-6 * exact.max())
    np.testing.assert_allclose(means[good], exact_means, rtol=1e-6, atol=1e-6)
    for bad in (0, rows - 1):
        assert np.isnan(products[bad]).all()
        assert np.isnan(products[:, bad]).all()
        assert np.isnan(means[bad])


@pytest.mark.parametrize("rows", [7, 66])
def test_gram_does_not_depend_on_the_order_of_threads(rows: int, run_gram: Run) -> None:
    x = torch.randn(rows, 500)
    first = emulated_gram(run_gram, [x], mean_origin=True, centre_rows=True)
    second = emulated_gram(run_gram, [x], mean_origin=True, centre_rows=True, backward=True)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def exact_mix(
    segments: Sequence[torch.Tensor], matrix: Array, offset: Array | None, centre_columns: bool
) -> Array:
    rows = np.concatenate([part.double().numpy() for part in segments], axis=1)
    if centre_columns:
        rows = rows - rows[(matrix != 0).any(axis=0)].mean(axis=0)
    if offset is not None:
        rows = rows - offset[:, None]
    with np.errstate(invalid="ignore"):
        terms = np.where(matrix[:, :, None] != 0, matrix[:, :, None] * rows, 0)
    return np.asarray(terms.sum(axis=1))


def emulated_mix(
    run: Run,
    segments: Sequence[torch.Tensor],
    matrix: Array,
    offset: Array | None = None,
    centre_columns: bool = False,
    backward: bool = False,
    **layout: Any,
) -> Array:
    case = integers(centre_columns, backward, len(matrix), offset is not None)
    case += packed(segments, **layout) + matrix.tobytes() + (b"" if offset is None else offset.tobytes())
    return run(case).reshape(len(matrix), -1)


def tolerance_of(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


# Around the outputs side by side (8), the panel (64 rows) and the tile (512 or 1024 columns).
@pytest.mark.parametrize(
    ("outputs", "rows", "columns"), [(1, 1, 1), (1, 65, 1027), (2, 5, 512), (9, 130, 70)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mix(outputs: int, rows: int, columns: int, dtype: torch.dtype, run_mix: Run) -> None:
    x = torch.randn(rows, columns).to(dtype)
    matrix = torch.randn(outputs, rows, dtype=torch.float64).numpy()
    offset = torch.randn(rows, dtype=torch.float64).numpy()
    tolerance = tolerance_of(dtype)
    for row_offset, centre in ((None, False), (offset, True)):
        exact = exact_mix([x], matrix, row_offset, centre)
        ours = emulated_mix(run_mix, [x], matrix, row_offset, centre)
        np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())


@pytest.mark.parametrize("layout", [{}, {"stride": 3}, {"misaligned": True}])
@pytest.mark.parametrize("outputs", [1, 3])
def test_mix_of_any_layout(outputs: int, layout: dict[str, Any], run_mix: Run) -> None:
    segments = [torch.randn(6, width) for width in (1030, 0, 9, 33)]
    segments[2:] = [segments[2].double(), segments[3].half()]
    matrix = torch.rand(outputs, 6, dtype=torch.float64).numpy()
    ours = emulated_mix(run_mix, segments, matrix, **layout)
    np.testing.assert_allclose(ours, exact_mix(segments, matrix, None, False), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("outputs", [1, 5])
def test_mix_does_not_read_a_row_of_weight_zero(outputs: int, run_mix: Run) -> None:
    x = torch.randn(6, 300)
    x[1] = torch.nan
    x[4, 7] = torch.inf
    matrix = torch.rand(outputs, 6, dtype=torch.float64).numpy()
    matrix[:, 1] = 0
    matrix[: outputs - 1, 4] = 0
    mixed = emulated_mix(run_mix, [x], matrix)
    exact = exact_mix([x], matrix, None, False)
    np.testing.assert_allclose(mixed, exact, rtol=1e-6, atol=1e-6)
    assert not np.isfinite(mixed[outputs - 1, 7])
    kept = [0, 2, 3, 5]
    matrix[:, 4] = 0
    centred = emulated_mix(run_mix, [x], matrix, centre_columns=True)
    np.testing.assert_allclose(
        centred, exact_mix([x[kept]], matrix[:, kept], None, True), rtol=1e-5, atol=1e-6
    )


def test_mix_without_rows_that_take_part(run_mix: Run) -> None:
    x, matrix = torch.full((3, 70), torch.nan), np.zeros((2, 3))
    for centre in (False, True):
        assert (emulated_mix(run_mix, [x], matrix, centre_columns=centre) == 0).all()


def test_mix_does_not_depend_on_the_order_of_threads(run_mix: Run) -> None:
    x, matrix = torch.randn(70, 1100), torch.randn(9, 70, dtype=torch.float64).numpy()
    first = emulated_mix(run_mix, [x], matrix, centre_columns=True)
    np.testing.assert_array_equal(
        first, emulated_mix(run_mix, [x], matrix, centre_columns=True, backward=True)
    )


def test_a_missing_barrier_of_gram_is_seen(compile_kernels: Any, launches_with_barriers: Any) -> None:
    x = torch.randn(5, 300)
    program = compile_kernels("gram", sanitized=False)
    # The sample, the shift, the products with their copies, the join, the averages and the finish.
    assert launches_with_barriers(
        program, lambda run: emulated_gram(run, [x], mean_origin=True, centre_rows=True), 6
    ) == [0, 1, 2, 3, 4, 5]


def test_a_missing_barrier_of_gram_panels_is_seen(compile_kernels: Any, launches_with_barriers: Any) -> None:
    x = torch.randn(130, 64)
    program = compile_kernels("gram", sanitized=False)
    # The pairs of groups, the groups themselves, and the join.
    assert launches_with_barriers(program, lambda run: emulated_gram(run, [x]), 3) == [0, 1, 2]


def test_a_missing_barrier_of_mix_is_seen(compile_kernels: Any, launches_with_barriers: Any) -> None:
    x, matrix = torch.randn(5, 300), np.ones((2, 5))
    program = compile_kernels("mix", sanitized=False)
    # The members and the tiles.
    assert launches_with_barriers(
        program, lambda run: emulated_mix(run, [x], matrix, centre_columns=True), 2
    ) == [0, 1]
