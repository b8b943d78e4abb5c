"""The torch operators that have a native form. Importing this module fills the table of ``lowering``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels.client_step.instructions import NotCoveredError, Operation, Value
from mmfl_fast.kernels.client_step.lowering import Lowering, argument, lowers
from mmfl_fast.kernels.client_step.recording import Call

_aten = torch.ops.aten

_UNARY = {
    _aten.neg.default: Operation.NEGATE,
    _aten.abs.default: Operation.ABSOLUTE,
    _aten.sqrt.default: Operation.SQUARE_ROOT,
    _aten.exp.default: Operation.EXPONENTIAL,
    _aten.log.default: Operation.LOGARITHM,
    _aten.log1p.default: Operation.LOG_OF_ONE_PLUS,
    _aten.sin.default: Operation.SINE,
    _aten.cos.default: Operation.COSINE,
    _aten.tanh.default: Operation.HYPERBOLIC_TANGENT,
    _aten.sigmoid.default: Operation.SIGMOID,
    _aten.relu.default: Operation.RELU,
}
_BINARY = {
    _aten.tanh_backward.default: Operation.HYPERBOLIC_TANGENT_BACKWARD,
    _aten.sigmoid_backward.default: Operation.SIGMOID_BACKWARD,
    _aten.mul.Tensor: Operation.MULTIPLY,
    _aten.mul.Scalar: Operation.MULTIPLY,
    _aten.div.Tensor: Operation.DIVIDE,
    _aten.div.Scalar: Operation.DIVIDE,
    _aten.eq.Tensor: Operation.EQUAL,
    _aten.eq.Scalar: Operation.EQUAL,
    _aten.ne.Tensor: Operation.NOT_EQUAL,
    _aten.ne.Scalar: Operation.NOT_EQUAL,
    _aten.lt.Tensor: Operation.LESS,
    _aten.lt.Scalar: Operation.LESS,
    _aten.le.Tensor: Operation.LESS_EQUAL,
    _aten.le.Scalar: Operation.LESS_EQUAL,
}
_SWAPPED = {
    _aten.gt.Tensor: Operation.LESS,
    _aten.gt.Scalar: Operation.LESS,
    _aten.ge.Tensor: Operation.LESS_EQUAL,
    _aten.ge.Scalar: Operation.LESS_EQUAL,
}
_LOGICAL = {
    _aten.bitwise_and.Tensor: Operation.MULTIPLY,
    _aten.logical_and.default: Operation.MULTIPLY,
    _aten.bitwise_or.Tensor: Operation.MAXIMUM,
    _aten.logical_or.default: Operation.MAXIMUM,
}


@lowers(*_UNARY)
def _unary(to: Lowering, call: Call) -> None:
    to.elementwise(_UNARY[call.function], call.result, call.arguments[0])


@lowers(*_BINARY)
def _binary(to: Lowering, call: Call) -> None:
    to.elementwise(_BINARY[call.function], call.result, *call.arguments[:2])


@lowers(*_SWAPPED)
def _swapped(to: Lowering, call: Call) -> None:
    a, b = call.arguments
    to.elementwise(_SWAPPED[call.function], call.result, b, a)


@lowers(*_LOGICAL)
def _logical(to: Lowering, call: Call) -> None:
    _need_truth_values(call)
    to.elementwise(_LOGICAL[call.function], call.result, *call.arguments)


@lowers(_aten.bitwise_not.default, _aten.logical_not.default)
def _not(to: Lowering, call: Call) -> None:
    _need_truth_values(call)
    to.elementwise(Operation.SUBTRACT, call.result, 1, call.arguments[0])


@lowers(_aten.add.Tensor, _aten.add.Scalar, _aten.sub.Tensor, _aten.sub.Scalar)
def _add(to: Lowering, call: Call) -> None:
    a, b = call.arguments[:2]
    subtracts = call.function in (_aten.sub.Tensor, _aten.sub.Scalar)
    operation = Operation.SUBTRACT if subtracts else Operation.ADD
    to.elementwise(operation, call.result, a, _scaled(to, b, argument(call, 2, "alpha", 1)))


@lowers(_aten.rsub.Scalar, _aten.rsub.Tensor)
def _subtract_from(to: Lowering, call: Call) -> None:
    a, b = call.arguments[:2]
    to.elementwise(Operation.SUBTRACT, call.result, b, _scaled(to, a, argument(call, 2, "alpha", 1)))


@lowers(_aten.pow.Tensor_Scalar)
def _power(to: Lowering, call: Call) -> None:
    a, exponent = call.arguments
    if exponent == 1:
        to.alias(call.result, a)
    elif exponent == 2:
        to.elementwise(Operation.MULTIPLY, call.result, a, a)
    else:
        to.elementwise(Operation.POWER, call.result, a, exponent)


@lowers(_aten.sgn.default)
def _sign(to: Lowering, call: Call) -> None:
    (x,) = call.arguments
    positive = to.elementwise(Operation.LESS, to.temporary(x.shape), 0, x)
    negative = to.elementwise(Operation.LESS, to.temporary(x.shape), x, 0)
    to.elementwise(Operation.SUBTRACT, call.result, positive, negative)


@lowers(_aten.reciprocal.default)
def _reciprocal(to: Lowering, call: Call) -> None:
    to.elementwise(Operation.DIVIDE, call.result, 1, call.arguments[0])


@lowers(_aten.rsqrt.default)
def _reciprocal_of_root(to: Lowering, call: Call) -> None:
    root = to.elementwise(Operation.SQUARE_ROOT, to.temporary(call.result.shape), call.arguments[0])
    to.elementwise(Operation.DIVIDE, call.result, 1, root)


@lowers(_aten.addcmul.default, _aten.addcdiv.default)
def _add_combined(to: Lowering, call: Call) -> None:
    a, b, c = call.arguments
    operation = Operation.MULTIPLY if call.function is _aten.addcmul.default else Operation.DIVIDE
    both = to.elementwise(operation, to.temporary(call.result.shape), b, c)
    to.elementwise(Operation.ADD, call.result, a, _scaled(to, both, argument(call, 3, "value", 1)))


@lowers(_aten.lerp.Scalar)
def _interpolate(to: Lowering, call: Call) -> None:
    a, b, weight = call.arguments
    way = to.elementwise(Operation.SUBTRACT, to.temporary(call.result.shape), b, a)
    # From the nearer end, as torch does.
    near, share = (a, weight) if abs(weight) < 0.5 else (b, weight - 1)
    to.elementwise(Operation.ADD, call.result, near, _scaled(to, way, share))


@lowers(_aten.clamp.default, _aten.clamp_min.default)
def _clamp(to: Lowering, call: Call) -> None:
    a = to.value(call.arguments[0])
    least, most = argument(call, 1, "min"), argument(call, 2, "max")
    if least is not None:
        a = to.elementwise(Operation.MAXIMUM, call.result, a, least)  # type: ignore[arg-type]
    if most is not None:
        to.elementwise(Operation.MINIMUM, call.result, a, most)  # type: ignore[arg-type]


@lowers(_aten.where.self)
def _where(to: Lowering, call: Call) -> None:
    to.elementwise(Operation.SELECT, call.result, *call.arguments)


@lowers(_aten.masked_fill.Scalar, _aten.masked_fill.Tensor)
def _fill(to: Lowering, call: Call) -> None:
    a, mask, number = call.arguments
    to.elementwise(Operation.SELECT, call.result, mask, number, a)


@lowers(_aten.masked_fill_.Scalar)
def _fill_in_place(to: Lowering, call: Call) -> None:
    a, mask, number = call.arguments
    to.elementwise(Operation.SELECT, a, mask, number, a)


@lowers(_aten._to_copy.default)
def _convert(to: Lowering, call: Call) -> None:
    (source,), result = call.arguments, call.result
    if source.dtype == torch.float32 and result.dtype == torch.int64:
        raise NotCoveredError("rounding to integers is not among the native operations")
    if result.dtype == torch.bool and source.dtype != torch.bool:
        to.elementwise(Operation.NOT_EQUAL, result, source, 0)
    else:
        to.alias(result, source)


@lowers(_aten.clone.default)
def _clone(to: Lowering, call: Call) -> None:
    to.alias(call.result, call.arguments[0])


@lowers(_aten.threshold_backward.default)
def _relu_backward(to: Lowering, call: Call) -> None:
    gradient, x, threshold = call.arguments
    if threshold != 0:
        raise NotCoveredError(f"a threshold of {threshold} is not among the native operations")
    to.elementwise(Operation.RELU_BACKWARD, call.result, gradient, x)


@lowers(_aten.softplus.default)
def _softplus(to: Lowering, call: Call) -> None:
    x, beta, threshold = _softplus_arguments(call, 0)
    scaled = to.elementwise(Operation.MULTIPLY, to.temporary(x.shape), x, beta)
    linear = to.elementwise(Operation.LESS, to.temporary(x.shape), threshold, scaled)
    curved = to.elementwise(Operation.EXPONENTIAL, scaled, scaled)
    curved = to.elementwise(Operation.LOG_OF_ONE_PLUS, curved, curved)
    curved = to.elementwise(Operation.DIVIDE, curved, curved, beta)
    to.elementwise(Operation.SELECT, call.result, linear, x, curved)


@lowers(_aten.softplus_backward.default)
def _softplus_backward(to: Lowering, call: Call) -> None:
    gradient = call.arguments[0]
    x, beta, threshold = _softplus_arguments(call, 1)
    scaled = to.elementwise(Operation.MULTIPLY, to.temporary(x.shape), x, beta)
    linear = to.elementwise(Operation.LESS, to.temporary(x.shape), threshold, scaled)
    curved = to.elementwise(Operation.SIGMOID, scaled, scaled)
    curved = to.elementwise(Operation.MULTIPLY, curved, gradient, curved)
    to.elementwise(Operation.SELECT, call.result, linear, gradient, curved)


@lowers(_aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim)
def _sum(to: Lowering, call: Call) -> None:
    x, axes = call.arguments[0], _axes(call)
    result = to.value(call.result)
    to.reduce(Operation.SUM, result, to.value(x), axes)
    if call.function in (_aten.mean.default, _aten.mean.dim):
        count = math.prod(x.shape[a] for a in axes)
        to.elementwise(Operation.DIVIDE, result, result, count)


@lowers(_aten.amax.default, _aten.any.default, _aten.any.dim)
def _largest(to: Lowering, call: Call) -> None:
    if call.function is not _aten.amax.default:
        _need_truth_values(call)
    to.reduce(Operation.LARGEST, to.value(call.result), to.value(call.arguments[0]), _axes(call))


@lowers(_aten.all.default, _aten.all.dim)
def _all(to: Lowering, call: Call) -> None:
    _need_truth_values(call)
    (x, *_), result = call.arguments, to.value(call.result)
    # Whether none is false.
    false = to.elementwise(Operation.SUBTRACT, to.temporary(x.shape), 1, x)
    to.reduce(Operation.LARGEST, result, false, _axes(call))
    to.elementwise(Operation.SUBTRACT, result, 1, result)


@lowers(_aten.logsumexp.default)
def _log_sum_exp(to: Lowering, call: Call) -> None:
    x, axes = call.arguments[0], _axes(call)
    kept = [1 if a in axes else size for a, size in enumerate(x.shape)]
    largest = to.temporary(kept)
    to.reduce(Operation.LARGEST, largest, to.value(x), axes)
    exponentials = to.elementwise(Operation.SUBTRACT, to.temporary(x.shape), x, largest)
    to.emit(Operation.EXPONENTIAL, exponentials, exponentials)
    total = to.temporary(kept)
    to.reduce(Operation.SUM, total, exponentials, axes)
    to.emit(Operation.LOGARITHM, total, total)
    result = to.value(call.result)
    shaped = [Value(v.buffer, 0, result.sizes, to.temporary(result.sizes).strides) for v in (total, largest)]
    to.elementwise(Operation.ADD, result, *shaped)


@lowers(_aten.stack.default, _aten.cat.default)
def _join(to: Lowering, call: Call) -> None:
    pieces, result = call.arguments[0], call.result
    axis = argument(call, 1, "dim", 0)
    if call.function is _aten.stack.default:
        places = result.unbind(axis)
    else:
        places = result.split([p.shape[axis] for p in pieces], axis)
    for piece, place in zip(pieces, places, strict=True):
        to.elementwise(Operation.COPY, place, piece)


@lowers(_aten.slice_backward.default, _aten.select_backward.default, _aten.diagonal_backward.default)
def _embed(to: Lowering, call: Call) -> None:
    gradient, _, *where = call.arguments
    whole = call.result
    view = {
        _aten.slice_backward.default: _aten.slice.Tensor,
        _aten.select_backward.default: _aten.select.int,
        _aten.diagonal_backward.default: _aten.diagonal.default,
    }[call.function]
    to.elementwise(Operation.COPY, whole, 0)
    to.elementwise(Operation.COPY, view(whole, *where), gradient)


@lowers(_aten.constant_pad_nd.default)
def _pad(to: Lowering, call: Call) -> None:
    x, whole = call.arguments[0], call.result
    padding, value = call.arguments[1], argument(call, 2, "value", 0)
    if any(p > 0 for p in padding):
        to.elementwise(Operation.COPY, whole, value)  # type: ignore[arg-type]
    # Pairs for the last axis, the one before and so on; negative ones cut off.
    for axis, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True), 1):
        x = x.narrow(-axis, max(-before, 0), x.shape[-axis] + min(before, 0) + min(after, 0))
        whole = whole.narrow(-axis, max(before, 0), x.shape[-axis])
    to.elementwise(Operation.COPY, whole, x)


def _scaled(to: Lowering, what: Any, factor: Any) -> Any:
    if factor == 1:
        return what
    if isinstance(what, Tensor):
        what = to.value(what)
    if not isinstance(what, Value):
        return what * factor
    return to.elementwise(Operation.MULTIPLY, to.temporary(what.sizes), what, factor)


def _axes(call: Call) -> list[int]:
    """The axes that a reduction takes, all if it names none."""
    count = call.arguments[0].dim()
    named: Any = (
        argument(call, 1, "dim") if call.function not in (_aten.sum.default, _aten.mean.default) else None
    )
    if isinstance(named, int):
        named = [named]
    return [a % count for a in named] if named and count else list(range(count))


def _need_truth_values(call: Call) -> None:
    tensors: Sequence[Any] = [a for a in call.arguments if isinstance(a, Tensor)]
    if any(t.dtype != torch.bool for t in tensors):
        raise NotCoveredError(f"{call.function} of numbers is not among the native operations")


def _softplus_arguments(call: Call, first: int) -> tuple[Tensor, Any, Any]:
    x = call.arguments[first]
    return x, argument(call, first + 1, "beta", 1), argument(call, first + 2, "threshold", 20)
