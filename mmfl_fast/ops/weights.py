"""Checks of the small arguments that weigh rows."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from torch import Tensor

from mmfl_fast.kernels.values import are_known
from mmfl_fast.ops.rows import Rows
from mmfl_fast.ops.tensors import as_float64


def as_shares(weights: Any, rows: Rows) -> Tensor:
    """``weights`` divided by their sum, as float64 [K] on the rows' device.

    The values are checked unless they are hidden, see :func:`mmfl_fast.kernels.values.are_known`.

    Raises:
        TypeError: no numbers.
        ValueError: another shape, a negative or non-finite weight, or a sum of 0 or infinity.
    """
    tensor = as_float64(weights, "weights", rows.device)
    if tensor.shape != (rows.row_count,):
        raise ValueError(
            f"weights must have shape ({rows.row_count},), one per row; got {tuple(tensor.shape)}"
        )
    total = tensor.sum()
    # NaN makes both comparisons fail.
    if are_known(tensor) and not (tensor.min().item() >= 0 and 0 < total.item() < math.inf):
        _refuse(tensor, total.item())
    return tensor / total


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
    if (
        tensor.dim() != 2
        or tensor.shape[1] != rows.row_count
        or (square and tensor.shape[0] != rows.row_count)
    ):
        expected = f"({rows.row_count}, {rows.row_count})" if square else f"(R, {rows.row_count})"
        raise ValueError(f"matrix must have shape {expected}; got {tuple(tensor.shape)}")
    return tensor
