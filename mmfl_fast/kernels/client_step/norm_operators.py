"""Lengths of vectors, and layers that bring their inputs to mean 0 and variance 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mmfl_fast.kernels.client_step.instructions import NotCoveredError, Operation, Value
from mmfl_fast.kernels.client_step.lowering import Lowering, argument, lowers
from mmfl_fast.kernels.client_step.recording import Call

_aten = torch.ops.aten


@lowers(_aten.linalg_vector_norm.default)
def _length(to: Lowering, call: Call) -> None:
    x, order, named = call.arguments[0], argument(call, 1, "ord", 2), argument(call, 2, "dim")
    if order != 2:
        raise NotCoveredError(f"a norm of order {order} is not among the native operations")
    axes: Any = range(x.dim()) if named is None else named
    squares = to.elementwise(Operation.MULTIPLY, to.temporary(x.shape), x, x)
    result = to.value(call.result)
    to.reduce(Operation.SUM, result, squares, axes)
    to.emit(Operation.SQUARE_ROOT, result, result)


@lowers(_aten.native_layer_norm.default)
def _layer_norm(to: Lowering, call: Call) -> None:
    x, shape, scale, shift, epsilon = call.arguments
    result, mean, inverse = call.result
    _mean(to, to.value(mean), to.value(x), shape)
    centred = to.elementwise(Operation.SUBTRACT, result, x, mean)
    squares = to.elementwise(Operation.MULTIPLY, to.temporary(x.shape), centred, centred)
    spread = _mean(to, to.temporary(inverse.shape), squares, shape)
    to.elementwise(Operation.ADD, spread, spread, epsilon)
    to.emit(Operation.SQUARE_ROOT, spread, spread)
    to.elementwise(Operation.DIVIDE, inverse, 1, spread)
    to.elementwise(Operation.MULTIPLY, result, result, inverse)
    if scale is not None:
        to.elementwise(Operation.MULTIPLY, result, result, scale)
    if shift is not None:
        to.elementwise(Operation.ADD, result, result, shift)


@lowers(_aten.native_layer_norm_backward.default)
def _layer_norm_backward(to: Lowering, call: Call) -> None:
    gradient, x, shape, mean, inverse, scale, _, wanted = call.arguments
    of_x, of_scale, of_shift = call.result
    rows = range(x.dim() - len(shape))
    normal = to.elementwise(Operation.SUBTRACT, to.temporary(x.shape), x, mean)
    to.elementwise(Operation.MULTIPLY, normal, normal, inverse)
    if wanted[1]:
        products = to.elementwise(Operation.MULTIPLY, to.temporary(x.shape), gradient, normal)
        to.reduce(Operation.SUM, to.value(of_scale), products, rows)
    if wanted[2]:
        to.reduce(Operation.SUM, to.value(of_shift), to.value(gradient), rows)
    if wanted[0]:
        # All of the gradient but what it has along the two directions that no longer count.
        own = to.value(gradient)
        if scale is not None:
            own = to.elementwise(Operation.MULTIPLY, to.temporary(x.shape), gradient, scale)
        products = to.elementwise(Operation.MULTIPLY, to.temporary(x.shape), own, normal)
        along = _mean(to, to.temporary(inverse.shape), products, shape)
        constant = _mean(to, to.temporary(inverse.shape), own, shape)
        to.elementwise(Operation.MULTIPLY, normal, normal, along)
        to.elementwise(Operation.SUBTRACT, of_x, own, constant)
        to.elementwise(Operation.SUBTRACT, of_x, of_x, normal)
        to.elementwise(Operation.MULTIPLY, of_x, of_x, inverse)


def _mean(to: Lowering, result: Value, source: Value, shape: Sequence[int]) -> Value:
    """Mean over the last axes, those of ``shape``."""
    to.reduce(Operation.SUM, result, source, range(-len(shape), 0))
    return to.elementwise(Operation.DIVIDE, result, result, math.prod(shape))
