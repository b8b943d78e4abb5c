"""What the numbers were measured on, and what that machine can do at best."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mmfl_fast.kernels.extension import _C

from .registry import Call, Work
from .timing import Contender, alternate

_DEVICE = "cuda"
_COPIED = 1 << 30
_MATRIX = 8192
# A product of float32 at its own precision, of operands cut into two TF32 numbers each.
_TF32_PRODUCTS = 3


@dataclass(frozen=True)
class Rates:
    """Of a GPU, measured.

    Attributes:
        copy: bytes read and written per millisecond by a large copy.
        multiply: floating-point operations per millisecond of a large matrix product, by input dtype.
    """

    copy: float
    multiply: dict[torch.dtype, float]

    def floor(self, work: Work) -> float:
        """Milliseconds below which the work cannot be done."""
        rate = self.multiply.get(work.dtype)
        return max(work.moved / self.copy, work.flops / rate if rate else 0.0)


def gpu_rates() -> Rates:
    """Measure the current GPU."""
    # Fresh memory holds zeros, which some memory moves faster.
    source = torch.randint(256, (_COPIED,), dtype=torch.uint8, device=_DEVICE)
    target = torch.empty_like(source)
    copy = 2 * _COPIED / _milliseconds(lambda: target.copy_(source))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    rates = {dtype: _product_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    torch.set_float32_matmul_precision(precision)
    rates[torch.float32] /= _TF32_PRODUCTS
    return Rates(copy, rates)


def _product_rate(dtype: torch.dtype) -> float:
    x = torch.randn(_MATRIX, _MATRIX, device=_DEVICE).to(dtype)
    return 2 * _MATRIX**3 / _milliseconds(lambda: x @ x)


def _milliseconds(call: Call) -> float:
    call()
    return alternate({"call": Contender([call], "auto")}, "cuda", seconds=0.5)["call"].p50


def facts(device: str, rates: Rates | None) -> dict[str, Any]:
    """Processor, versions, date and commit; on a GPU its name, driver and rates."""
    told = {
        "processor": f"{os.cpu_count()} cores of {_processor()}",
        "simd": _C.simd_level(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "commit": os.environ.get("COMMIT") or _commit(),
    }
    if device == "cuda":
        told |= {
            "gpu": torch.cuda.get_device_name(),
            "driver": _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "built with": _C.cuda_report()[0] if _C.built_with_cuda else "no CUDA",
        }
    if rates is not None:
        told["copy [GB/s]"] = round(rates.copy / 1e6)
        for dtype, rate in rates.multiply.items():
            told[f"{str(dtype).removeprefix('torch.')} products [TFLOP/s]"] = round(rate / 1e9)
    return told


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return "unknown"
    return _said_by("git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*")


def _said_by(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
