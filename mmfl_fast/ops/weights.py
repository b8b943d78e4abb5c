"""Checks of the small arguments that weigh rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfl_fast.ops.rows import Rows
from mmfl_fast.ops.tensors import as_real


def as_weights(weights: Any, rows: Rows) -> Tensor:
    """``weights`` as a tensor [K] of real numbers on the rows' device; their values are not looked at.

    Raises:
        TypeError: no numbers.
        ValueError: another shape.
    """
    tensor = as_real(weights, "weights", rows.device)
    if tensor.shape != (rows.row_count,):
        raise ValueError(
            f"weights must have shape ({rows.row_count},), one per row; got {tuple(tensor.shape)}"
        )
    return tensor


def as_matrix(matrix: Any, rows: Rows, square: bool = False) -> Tensor:
    """``matrix`` as float64 [R, K] on the rows' device; R = K when ``square``.

    Raises:
        TypeError: no numbers.
        ValueError: another shape.
    """
    tensor = as_real(matrix, "matrix", rows.device)
    if tensor.dtype is not torch.float64:
        tensor = tensor.to(torch.float64)
    if (
        tensor.dim() != 2
        or tensor.shape[1] != rows.row_count
        or (square and tensor.shape[0] != rows.row_count)
    ):
        expected = f"({rows.row_count}, {rows.row_count})" if square else f"(R, {rows.row_count})"
        raise ValueError(f"matrix must have shape {expected}; got {tuple(tensor.shape)}")
    return tensor
