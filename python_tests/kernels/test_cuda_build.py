"""Every CUDA kernel compiles for every chip that CMakeLists.txt names, and keeps its values in registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
CHIPS = ["80", "90a", "100"]
SOURCES = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.glob("*/*_launch.cu"))

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def nvcc(source: str, *options: str) -> str:
    command = ["nvcc", "-std=c++17", "-O3", f"-I{CSRC}", *options, str(CSRC / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def spilled_bytes(report: str) -> dict[str, int]:
    """By kernel, what ``ptxas -v`` says of local memory: stack frame and spills together."""
    spilled: dict[str, int] = {}
    kernel = ""
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = entry[1]
        elif numbers := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", line):
            spilled[kernel] = sum(map(int, numbers.groups()))
    return spilled


def test_there_are_kernels() -> None:
    folders = ("algebra", "cross_gram_sq", "gram", "mix", "prototype_loss")
    assert [f"{name}/{name}_launch.cu" for name in folders] == SOURCES


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future[str]]]:
    """Of every source for every chip, what ``ptxas -v`` will say: they compile side by side."""
    folder = tmp_path_factory.mktemp("cubins")

    def report(source: str, chip: str) -> str:
        target = f"-gencode=arch=compute_{chip},code=sm_{chip}"
        cubin = folder / f"{Path(source).stem}_{chip}.cubin"
        return nvcc(source, "-cubin", target, "-Xptxas", "-v", "-o", str(cubin))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {(source, chip): pool.submit(report, source, chip) for chip in CHIPS for source in SOURCES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("chip", CHIPS)
def test_no_kernel_spills(source: str, chip: str, reports: dict[tuple[str, str], Future[str]]) -> None:
    spilled = spilled_bytes(reports[source, chip].result())
    assert spilled
    assert {kernel: count for kernel, count in spilled.items() if count > 0} == {}


@pytest.mark.parametrize("source", SOURCES)
def test_the_common_ptx(source: str, tmp_path: Path) -> None:
    ptx = tmp_path / "ptx"
    nvcc(source, "-ptx", "-arch=compute_80", "-o", str(ptx))
    text = ptx.read_text()
    assert ".entry" in text
    # 16-byte loads through the read-only path: of rows, which the algebra does not see.
    assert ("ld.global.nc.v4" in text) == (source != "algebra/algebra_launch.cu")
    without_products = ("algebra/algebra_launch.cu", "mix/mix_launch.cu")
    assert ("mma.sync.aligned.m16n8k8.row.col.f32.tf32" in text) == (source not in without_products)
    for kind in ("bf16", "f16"):
        instruction = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}"
        assert (instruction in text) == (source == "prototype_loss/prototype_loss_launch.cu")


def test_a_spill_would_be_seen() -> None:
    report = """ptxas info    : Compiling entry function 'kernel' for 'sm_80'
ptxas info    : Function properties for kernel
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers"""
    assert spilled_bytes(report) == {"kernel": 16}
