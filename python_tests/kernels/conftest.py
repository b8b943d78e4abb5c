from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mmfl_fast.kernels.backend import backends, use_backend

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"

# Of csrc/common/dtype.h, the code of a dtype is its place here.
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class CanonicalRows:
    blocks: list[Tensor]
    segments: int
    stacked: bool

    @property
    def arguments(self) -> tuple[list[Tensor], int, bool]:
        return self.blocks, self.segments, self.stacked

    @property
    def matrix(self) -> Tensor:
        """[K, P] float64, put together by other means than the package's."""
        rows = []
        for start in range(0, len(self.blocks), self.segments):
            line = [block.double() for block in self.blocks[start : start + self.segments]]
            count = len(line[0]) if self.stacked else 1
            rows += [torch.cat([part.reshape(count, -1)[k] for part in line]) for k in range(count)]
        return torch.stack(rows)


def _arrange(layout: str, values: Tensor) -> CanonicalRows:
    rows, columns = values.shape
    half = columns // 2
    if layout == "contiguous":
        return CanonicalRows([values], 1, True)
    if layout == "slice":
        larger = values.new_full((rows + 2, columns + 3), torch.nan)
        larger[1:-1, 2:-1] = values
        return CanonicalRows([larger[1:-1, 2:-1]], 1, True)
    if layout == "every second":
        larger = values.new_full((rows, columns, 2), torch.nan)
        larger[:, :, 1] = values
        return CanonicalRows([larger[:, :, 1]], 1, True)
    if layout == "transposed":
        return CanonicalRows([values.T.contiguous().T], 1, True)
    if layout == "expanded":
        return CanonicalRows([values[:, :1].expand(rows, columns)], 1, True)
    if layout == "two strides":
        larger = values.new_full((rows, 2, half + 1), torch.nan)
        larger[:, :, :half] = values[:, : 2 * half].reshape(rows, 2, half)
        return CanonicalRows([larger[:, :, :half]], 1, True)
    if layout == "segments":
        return CanonicalRows([values[:, :half].contiguous(), values[:, half:].contiguous()], 2, True)
    if layout == "two stacks":
        return CanonicalRows([values[: rows // 2], values[rows // 2 :]], 1, True)
    assert layout == "state dicts"
    parts = [part for row in values for part in (row[:half].clone(), row[half:].clone().reshape(-1, 1))]
    return CanonicalRows(parts, 2, False)


@pytest.fixture(params=["native", "triton"])
def gpu_kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both kinds of kernels for a GPU, one after the other."""
    status = backends()[request.param]
    if "cuda" not in status.devices:
        if request.config.getoption("--require-gpu"):
            pytest.fail(status.reason, pytrace=False)
        pytest.skip(status.reason)
    with use_backend(request.param):
        yield request.param
    # An error of a kernel is told where the host waits for it: in this test, not in the next.
    torch.cuda.synchronize()


@pytest.fixture
def level_environment() -> Callable[[str], dict[str, str]]:
    """``level_environment("avx2")``: of a process at that SIMD level, in which the C library gives out memory
    full of large numbers, so that nobody can count on zeros."""
    return lambda level: {**os.environ, "MMFL_SIMD": level, "MALLOC_PERTURB_": "128"}


@pytest.fixture
def arrange() -> Any:
    """``arrange(layout, values [K, P])``: the rows in that layout."""
    return _arrange


@pytest.fixture
def assert_accurate() -> Any:
    """``assert_accurate(ours, plain, exact, floor)``: at most twice the error of plain torch, and ``floor``
    times the largest exact value."""

    def check(ours: Tensor, plain: Tensor, exact: Tensor, floor: float) -> None:
        assert ours.shape == exact.shape
        if exact.numel() == 0:
            return
        error = (ours.double() - exact).abs().max()
        bound = 2 * (plain.double() - exact).abs().max() + floor * exact.abs().max()
        assert error <= bound, f"error {error:.3g}, bound {bound:.3g}"

    return check


def _code(tensor: Tensor) -> int:
    return DTYPES.index(tensor.dtype) if tensor.dtype in DTYPES else 0


@pytest.fixture
def without_memory() -> Callable[..., Tensor]:
    """A tensor of a shape whose memory was given back, as some trainers do between steps."""

    def make(*shape: int, **options: Any) -> Tensor:
        tensor = torch.empty(shape, **options)
        tensor.untyped_storage().resize_(0)
        return tensor

    return make


def _packed(part: int | float | bytes | Tensor | None) -> bytes:
    """As the programs of ``compile_kernels`` read it; a tensor keeps its strides."""
    if isinstance(part, bytes):
        return part
    if isinstance(part, int):
        return np.int64(part).tobytes()
    if isinstance(part, float):
        return np.float64(part).tobytes()
    if part is None or part.numel() == 0:
        code = 0 if part is None else _code(part)
        return np.array((code, *[0] * 6), dtype=np.int64).tobytes()
    size, strides = part.element_size(), part.stride()
    reach = sum((length - 1) * stride for length, stride in zip(part.shape, strides, strict=True))
    # The first element keeps its alignment, and behind the last one nothing follows.
    front, first = part.data_ptr() % 16, part.storage_offset() * size
    whole = torch.empty(0, dtype=torch.uint8).set_(part.untyped_storage())
    contents = whole[first : first + (reach + 1) * size].numpy().tobytes()
    header = (
        _code(part),
        *strides,
        *[0] * (4 - len(strides)),
        front,
        front + len(contents),
    )
    return np.array(header, dtype=np.int64).tobytes() + bytes(front) + contents


def _compiled(
    folder: Path, name: str, *options: str, plans: tuple[str, ...] = ()
) -> Callable[..., npt.NDArray[np.float64]]:
    program = folder / name
    sources = [HERE / f"emulated_{name}.cpp", CSRC / "common/row_table.cpp"]
    cuts = (CSRC / plan / f"{plan}_plan.cpp" for plan in (name, *plans))
    sources += [cut for cut in cuts if cut.exists()]
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{CSRC}",
         *options, *map(str, sources), "-o", str(program)],
        check=True,
    )  # fmt: skip

    def run(
        *parts: int | float | bytes | Tensor | None, without_barrier: int | None = None
    ) -> npt.NDArray[np.float64]:
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        if without_barrier is not None:
            environment["MMFL_EMULATE_WITHOUT_BLOCK_BARRIER"] = str(without_barrier)
        case = b"".join(_packed(part) for part in parts)
        done = subprocess.run([program], input=case, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return np.frombuffer(done.stdout)

    return run


@pytest.fixture(scope="session")
def compile_kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``compile_kernels(primitive, sanitized, plans=())``: the bodies of CUDA kernels on the CPU.

    Sanitized, or able to do ``without_barrier``, which is the number of a launch, the barriers of its blocks;
    ``plans`` names further primitives whose plans it needs. It takes the parts of a case and returns what the
    program wrote.
    """

    def compiled(name: str, sanitized: bool, plans: tuple[str, ...] = ()) -> Any:
        options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        if not sanitized:
            options = ["-DMMFL_EMULATE_WITHOUT_BLOCK_BARRIER"]
        return _compiled(tmp_path_factory.mktemp(name), name, *options, plans=plans)

    return compiled


@pytest.fixture
def launches_with_barriers() -> Any:
    """``launches_with_barriers(program, case, launches)``: those that go wrong without their barriers.

    ``case(run)`` calls ``run`` once; ``program`` is not sanitized.
    """

    def outcome(program: Any, case: Callable[[Any], object], launch: int) -> npt.NDArray[np.float64]:
        outputs = []

        def run(*parts: Any) -> npt.NDArray[np.float64]:
            outputs.append(program(*parts, without_barrier=launch))
            return outputs[0]

        case(run)
        return outputs[0]

    def missed(program: Any, case: Callable[[Any], object], launches: int) -> list[int]:
        whole = outcome(program, case, -1)
        assert np.isfinite(whole).all()
        found = []
        for launch in range(launches):
            try:
                same = np.array_equal(outcome(program, case, launch), whole)
            except AssertionError:
                # The program died of what nobody had written yet.
                same = False
            if not same:
                found.append(launch)
        return found

    return missed
