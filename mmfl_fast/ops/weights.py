"""Checks of the small arguments that weigh rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfl_fast.ops.rows import Rows


def _values_are_known() -> bool:
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def as_weights(weights: Any, rows: Rows) -> Tensor:
    """``weights`` as float64 [K] on the rows' device.

    The values are checked unless ``torch.compile`` or ``torch.func`` hides them.

    Raises:
        ValueError: another shape, a negative or non-finite weight, or a sum of 0.
    """
    tensor = torch.as_tensor(weights, dtype=torch.float64, device=rows.device)
    if tensor.shape != (rows.count,):
        raise ValueError(f"weights must have shape ({rows.count},), one per row; got {tuple(tensor.shape)}")
    if _values_are_known():
        values = tensor.detach()
        wrong = torch.nonzero(~((values >= 0) & torch.isfinite(values)))
        if len(wrong) > 0:
            k = int(wrong[0])
            raise ValueError(f"weights must be finite and not negative; weights[{k}] is {float(values[k])}")
        if float(values.sum()) == 0:
            raise ValueError("weights must have a positive sum; all are 0")
    return tensor


def as_matrix(matrix: Any, rows: Rows, square: bool = False) -> Tensor:
    """``matrix`` as float64 [R, K] on the rows' device; R = K when ``square``.

    Raises:
        ValueError: another shape.
    """
    tensor = torch.as_tensor(matrix, dtype=torch.float64, device=rows.device)
    if tensor.dim() != 2 or tensor.shape[1] != rows.count or (square and tensor.shape[0] != rows.count):
        expected = f"({rows.count}, {rows.count})" if square else f"(R, {rows.count})"
        raise ValueError(f"matrix must have shape {expected}; got {tuple(tensor.shape)}")
    return tensor
