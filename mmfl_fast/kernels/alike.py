"""Whether tensors are alike, asked of thousands at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels.extension import _C, missing

_PLAIN = (Tensor, torch.nn.Parameter)


def alike(arrays: list[Any], segments: int) -> bool:
    """Whether all are dense tensors on one device, and every line has the shapes and dtypes of the first.

    Args:
        arrays: a grid, ``segments`` to a line.
        segments: at least one; the tensors of the first line are dense.
    """
    # What is no plain tensor, or only stands for one, C++ cannot look at.
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not missing and not traced and _C.alike(arrays, segments, _PLAIN):
        return True
    if not all(issubclass(kind, Tensor) for kind in set(map(type, arrays))):
        return False
    lines, first = len(arrays) // segments, arrays[:segments]
    return (
        [tensor.shape for tensor in arrays] == [tensor.shape for tensor in first] * lines
        and [tensor.dtype for tensor in arrays] == [tensor.dtype for tensor in first] * lines
        and [tensor.device for tensor in arrays] == [first[0].device] * len(arrays)
        and [tensor.layout for tensor in arrays] == [torch.strided] * len(arrays)
    )
