"""How the Triton kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

# Major and minor version.
COMPILER = tuple(int(part) for part in triton.__version__.split(".")[:2])

# Under TRITON_INTERPRET=1 kernels run on CPU tensors, for tests.
INTERPRETED = bool(knobs.runtime.interpret)

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device current: Triton launches on the current stream of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def factor_type(compute: torch.dtype, *dtypes: torch.dtype) -> torch.dtype:
    """The type in which values of ``dtypes`` are multiplied when nothing is done to them before.

    Products of two numbers of 16 bits are exact in float32. The interpreter cannot multiply them.
    """
    narrow = dtypes[0] in (torch.bfloat16, torch.float16) and len(set(dtypes)) == 1
    return dtypes[0] if narrow and compute == torch.float32 and not INTERPRETED else compute


def precision(tf32: bool) -> str:
    """How float32 is multiplied: split into two TF32 numbers each, or rounded to one."""
    return "tf32" if tf32 else "tf32x3"
