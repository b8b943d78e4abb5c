"""Every Triton configuration compiles without a GPU, fits a multiprocessor, and uses its matrix unit.

The launchers run on CPU tensors with recorders in the place of their kernels; what they would have launched
is compiled for two chips.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which is not installed")

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from mmfl_fast.kernels import triton_rows
from mmfl_fast.kernels.cross_gram_sq import triton as cross_gram_sq
from mmfl_fast.kernels.gram import triton as gram
from mmfl_fast.kernels.mix import triton as mix
from mmfl_fast.kernels.prototype_loss import triton as prototype_loss

FLOAT, DOUBLE, HALF = torch.float32, torch.float64, torch.bfloat16
# Bytes of shared memory that one program may have.
SHARED = {80: 163 << 10, 90: 227 << 10}
POINTERS = {DOUBLE: "*fp64", FLOAT: "*fp32", HALF: "*bf16", torch.int64: "*i64", torch.bool: "*i1"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
TF32 = r"mma\.sync\.aligned\.m16n8k8\S*\.tf32\.|wgmma\.mma_async\S*\.tf32\."
F64 = r"mma\.sync\.aligned\S*\.f64\.f64\."
BF16 = r"mma\.sync\.aligned\.m16n8k16\S*\.bf16\.|wgmma\.mma_async\S*\.bf16\."
MATRIX = r"mma\.sync|wgmma\.mma_async"
NONE = ""
UNIT = {FLOAT: TF32, DOUBLE: F64}


@dataclass(frozen=True)
class Launch:
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Recorder:
    """Stands for a kernel and notes its launches."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(type(size) is int and size > 0 for size in grid)

        def launch(*arguments: Any, **options: Any) -> None:
            self.launches.append(Launch(self.kernel, arguments, options))

        return launch


def recorded(run: Callable[[], Any]) -> list[Launch]:
    launches: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (triton_rows, gram, mix, cross_gram_sq, prototype_loss):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, Recorder(getattr(module, name), launches))
        run()
    return launches


def source(launch: Launch) -> ASTSource:
    """What Triton would compile: types, and which arguments it knows to be 1 or multiples of 16."""
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    values |= {name: value for name, value in launch.options.items() if name not in OPTIONS}
    signature: dict[str, Any] = {}
    constants, attributes = {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = values.pop(parameter.name)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, tuple):
            signature[parameter.name] = ("i64",) * len(value)
        elif isinstance(value, float):
            signature[parameter.name] = parameter.annotation_type
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    assert not values
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


@dataclass(frozen=True)
class Compiled:
    name: str
    shared: int
    ptx: str
    ttgir: str
    spilled: int


def compiled(launch: Launch, chip: int, folder: Path) -> Compiled:
    options = {name: launch.options[name] for name in OPTIONS if name in launch.options}
    result = compile_kernel(source(launch), target=GPUTarget("cuda", chip, 32), options=options)
    ptx = folder / f"{result.hash}.ptx"
    ptx.write_text(result.asm["ptx"])
    name = f"sm_{chip}a" if chip >= 90 else f"sm_{chip}"
    report = subprocess.run(
        [get_ptxas(chip).path, "-v", "--gpu-name", name, str(ptx), "-o", str(ptx.with_suffix(".cubin"))],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return Compiled(
        launch.kernel.__name__,
        result.metadata.shared,
        result.asm["ptx"],
        result.asm["ttgir"],
        spilled(report),
    )


def spilled(report: str) -> int:
    """Bytes that ``ptxas -v`` says went to local memory and back."""
    numbers = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert numbers is not None
    return int(numbers[1]) + int(numbers[2])


@dataclass(frozen=True)
class Case:
    """A call, the instruction its main kernels multiply with, and whether they are wide enough for wgmma."""

    run: Callable[[], Any]
    instruction: str
    wide: bool = False
    # Bytes that may spill, by chip: none but in a few places, which are named.
    spills: dict[int, int] = field(default_factory=dict)


def gram_case(
    count: int, dtype: torch.dtype, origin: str, centre: bool = True, tf32: bool = False
) -> Callable[[], Any]:
    rows = torch.zeros(count, 4096, dtype=dtype)
    row = [rows[0]] if origin == "row" else []
    return lambda: gram.gram([rows], 1, True, row, origin == "mean", centre, tf32)


def scattered_gram() -> None:
    blocks = [
        torch.zeros(width, dtype=FLOAT)[::step] for _ in range(20) for width, step in ((64, 1), (99, 3))
    ]
    gram.gram(blocks, 2, False, [], True, True, False)


def mix_case(outputs: int, dtype: torch.dtype, centre: bool) -> Callable[[], Any]:
    rows = torch.zeros(64, 4096, dtype=dtype)
    matrix = torch.zeros(outputs - centre, 64, dtype=DOUBLE)
    offset = torch.zeros(64, dtype=DOUBLE) if centre else None
    return lambda: mix.mix([rows], 1, True, matrix, offset, centre)


def cross_gram_sq_case(rows: int, dtype: torch.dtype, shifted: bool) -> Callable[[], Any]:
    block = torch.zeros(1, 4, rows, 64, dtype=dtype)
    return lambda: cross_gram_sq.cross_gram_sq([block], shifted, shifted, False)


def prototype_loss_case(rows: int, classes: int, dtype: torch.dtype) -> Callable[[], Any]:
    features, prototypes = torch.zeros(2, rows, 384, dtype=dtype), torch.zeros(1, classes, 384, dtype=dtype)
    labels, mask = torch.zeros(2, rows, dtype=torch.int64), torch.ones(2, classes, dtype=torch.bool)

    def run() -> None:
        others = (features, labels, prototypes, mask, 0.1, True, False)
        loss, log_sum = prototype_loss.prototype_loss(*others)
        prototype_loss.prototype_loss_backward(loss, loss, log_sum, *others)

    return run


CASES = {
    **{
        f"gram {count} {dtype}": Case(gram_case(count, dtype, "mean"), UNIT[dtype], count >= 64)
        for dtype in (FLOAT, DOUBLE)
        for count in (16, 32, 64, 100)
    },
    "gram less a row": Case(gram_case(64, FLOAT, "row"), TF32, True),
    # An address per row costs registers.
    "gram scattered": Case(scattered_gram, TF32, spills={80: 64, 90: 64}),
    "gram tf32": Case(gram_case(64, FLOAT, "none", centre=False, tf32=True), TF32, True),
    "gram plain": Case(gram_case(64, FLOAT, "none", centre=False), TF32, True, {80: 256}),
    "gram bfloat16": Case(gram_case(64, HALF, "none", centre=False), BF16, True),
    "gram bfloat16 mean": Case(gram_case(16, HALF, "mean"), TF32),
    **{
        f"mix {outputs} {dtype}": Case(
            mix_case(outputs, dtype, outputs > 1),
            NONE if outputs <= 4 else UNIT[dtype],
            outputs > 16,
            {80: 16} if outputs == 4 else {},
        )
        for dtype in (FLOAT, DOUBLE)
        for outputs in (1, 2, 4, 16, 64)
    },
    "mix bfloat16": Case(mix_case(64, HALF, False), TF32, True),
    **{
        f"cross_gram_sq {rows} {dtype}": Case(cross_gram_sq_case(rows, dtype, True), UNIT[dtype], rows >= 64)
        for dtype in (FLOAT, DOUBLE)
        for rows in (16, 64)
    },
    "cross_gram_sq bfloat16": Case(cross_gram_sq_case(64, HALF, False), BF16, True),
    **{
        f"prototype_loss {rows} {classes} {dtype}": Case(
            prototype_loss_case(rows, classes, dtype),
            UNIT[dtype],
            rows >= 64,
            {80: 256} if rows >= 64 else {},
        )
        for dtype, shapes in (
            (FLOAT, ((16, 16), (16, 64), (64, 16), (64, 64))),
            (DOUBLE, ((16, 16), (40, 40))),
        )
        for rows, classes in shapes
    },
    "prototype_loss bfloat16": Case(prototype_loss_case(64, 64, HALF), BF16, True),
}
# The kernels of a primitive that multiply.
MULTIPLY = {
    "gram": {"gram_kernel"},
    "mix": {"mix_kernel"},
    "cross_gram_sq": {"products_kernel"},
    "prototype_loss": {"forward_kernel", "backward_kernel"},
}


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[tuple[str, int], list[Future[Compiled]]]]:
    """All kernels of all cases, being compiled; a kernel that several cases launch is compiled once."""
    folder = tmp_path_factory.mktemp("ptx")
    compiling: dict[tuple[str, int], Future[Compiled]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found: dict[tuple[str, int], list[Future[Compiled]]] = {}
        for name, case in CASES.items():
            for launch in recorded(case.run):
                for chip in SHARED:
                    # Everything the compiler sees; values of other arguments are not part of it.
                    key = f"{source(launch).hash()} {sorted(launch.options.items(), key=str)}"
                    if (key, chip) not in compiling:
                        compiling[key, chip] = pool.submit(compiled, launch, chip, folder)
                    found.setdefault((name, chip), []).append(compiling[key, chip])
        yield found


@pytest.mark.parametrize("chip", list(SHARED))
@pytest.mark.parametrize("name", list(CASES))
def test_kernels_of(name: str, chip: int, results: dict[tuple[str, int], list[Future[Compiled]]]) -> None:
    case = CASES[name]
    kernels = [future.result() for future in results[name, chip]]
    primitive = MULTIPLY[name.split()[0]]
    assert primitive <= {kernel.name for kernel in kernels}
    for kernel in kernels:
        assert kernel.shared <= SHARED[chip], kernel.name
        assert kernel.spilled <= case.spills.get(chip, 0), f"{kernel.name} spills {kernel.spilled} bytes"
        # An accumulator that goes around a loop inside the matrix unit is rounded towards zero every time.
        assert not re.search(r"(tt\.dot|warp_group_dot) %\S+ %\S+ %arg", kernel.ttgir), kernel.name
        if kernel.name in primitive:
            assert bool(re.search(MATRIX, kernel.ptx)) == bool(case.instruction), kernel.name
            assert re.search(case.instruction, kernel.ptx), kernel.name
            if case.wide and chip >= 90 and case.instruction != F64:
                assert "wgmma.mma_async" in kernel.ptx, kernel.name


@pytest.mark.parametrize("chip", list(SHARED))
def test_float32_takes_three_products(
    chip: int, results: dict[tuple[str, int], list[Future[Compiled]]]
) -> None:
    counts = []
    for name in ("gram plain", "gram tf32"):
        (kernel,) = [f.result() for f in results[name, chip] if f.result().name == "gram_kernel"]
        counts.append(len(re.findall(TF32, kernel.ptx)))
    # Of the loop and, on sm_90, of a first step outside of it.
    assert counts[0] >= 2.5 * counts[1]


@pytest.mark.parametrize("chip", list(SHARED))
@pytest.mark.parametrize("name", ["gram 16 torch.float32", "gram 64 torch.float64", "gram bfloat16"])
def test_aligned_rows_come_16_bytes_at_a_time(
    name: str, chip: int, results: dict[tuple[str, int], list[Future[Compiled]]]
) -> None:
    (kernel,) = [f.result() for f in results[name, chip] if f.result().name == "gram_kernel"]
    assert re.search(r"cp\.async\.cg\.shared\.global \[ %r\d+ \+ 0 \], \[ %rd\d+ \+ 0 \], 0x10", kernel.ptx)


def test_every_configuration_is_among_the_cases() -> None:
    kernels = set().union(*MULTIPLY.values())
    seen = {
        (launch.kernel.__name__, launch.options.get("ROWS") or launch.options.get("OUTPUTS"),
         launch.options.get("CLASSES") or launch.options.get("COLUMNS") or launch.options.get("DEPTH"),
         launch.options["num_warps"], launch.options.get("num_stages"), str(launch.options["COMPUTE"]))
        for case in CASES.values() for launch in recorded(case.run) if launch.kernel.__name__ in kernels
    }  # fmt: skip
    names = {FLOAT: "fp32", DOUBLE: "fp64"}
    wanted = {
        ("mix_kernel", t.outputs, t.columns, t.warps, t.stages, names[d]) for t in mix.TILES for d in names
    }
    for dtype, compute in names.items():
        wanted |= {("gram_kernel", t.rows, t.columns, t.warps, t.stages, compute) for t in gram.TILES[dtype]}
        wanted |= {
            ("products_kernel", t.rows, t.depth, t.warps, t.stages, compute)
            for t in cross_gram_sq.TILES[dtype]
        }
        wanted |= {
            (kernel, t.rows, t.classes, t.warps, t.stages, compute)
            for kernel in ("forward_kernel", "backward_kernel")
            for t in prototype_loss.TILES[dtype]
        }
    assert seen == wanted


def test_a_spill_would_be_seen() -> None:
    assert spilled("    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads") == 16


def test_a_compiler_that_crashes_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototype_loss, "COMPILER", (3, 6))
    x, labels = torch.randn(1, 2, 3, dtype=DOUBLE), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match=r"needs Triton 3\.9.*this is 3\.6"):
        prototype_loss.prototype_loss(x, labels, x, None, 0.1, True, False)
