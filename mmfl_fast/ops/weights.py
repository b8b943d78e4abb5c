"""Checks of the small arguments that weigh rows."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from torch import Tensor

from mmfl_fast.kernels.values import are_known
from mmfl_fast.ops.rows import Rows
from mmfl_fast.ops.tensors import as_float64


def as_weights(weights: Any, rows: Rows) -> Tensor:
    """``weights`` as float64 [K] on the rows' device.

    The values are checked unless they are hidden, see :func:`mmfl_fast.kernels.values.are_known`.

    Raises:
        TypeError: no numbers.
        ValueError: another shape, a negative or non-finite weight, or a sum of 0 or infinity.
    """
    tensor = as_float64(weights, "weights", rows.device)
    if tensor.shape != (rows.count,):
        raise ValueError(f"weights must have shape ({rows.count},), one per row; got {tuple(tensor.shape)}")
    if are_known(tensor):
        values = tensor.detach()
        total = float(values.sum())
        # NaN makes both comparisons fail.
        if not (float(values.min()) >= 0 and 0 < total < math.inf):
            _refuse(values, total)
    return tensor


def _refuse(values: Tensor, total: float) -> NoReturn:
    for k, value in enumerate(values.tolist()):
        if not 0 <= value < math.inf:
            raise ValueError(f"weights must be finite and not negative; weights[{k}] is {value}")
    raise ValueError(f"weights must have a positive sum that is finite; got {total}")


def as_matrix(matrix: Any, rows: Rows, square: bool = False) -> Tensor:
    """``matrix`` as float64 [R, K] on the rows' device; R = K when ``square``.

    Raises:
        TypeError: no numbers.
        ValueError: another shape.
    """
    tensor = as_float64(matrix, "matrix", rows.device)
    if tensor.dim() != 2 or tensor.shape[1] != rows.count or (square and tensor.shape[0] != rows.count):
        expected = f"({rows.count}, {rows.count})" if square else f"(R, {rows.count})"
        raise ValueError(f"matrix must have shape {expected}; got {tuple(tensor.shape)}")
    return tensor
