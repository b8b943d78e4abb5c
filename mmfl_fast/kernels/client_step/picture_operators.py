"""Convolutions and pooling over one axis or two, in pictures whose channels lie side by side.

Torch's axes are ``[B, C, T]`` and ``[B, C, H, W]``, the kernel's ``[B, H, W, C]``. Whatever lies otherwise is
copied; :mod:`.recording` lets convolutions give their pictures channels last.
"""

from __future__ import annotations

from typing import Any

import torch

from mmfl_fast.kernels.client_step.instructions import (
    NotCoveredError,
    Operation,
    Value,
    dense_strides,
)
from mmfl_fast.kernels.client_step.lowering import Lowering, argument, lowers
from mmfl_fast.kernels.client_step.recording import Call

_aten = torch.ops.aten


@lowers(_aten.convolution.default)
def _convolve(to: Lowering, call: Call) -> None:
    x, weight, bias, *options = call.arguments
    padding, transposed = _plain_padding(options), options[3]
    pictures, kernels = _pictures(to.value(x)), _kernels(to.value(weight))
    if transposed:
        kernels, padding = _turned(kernels, padding)
    biases = [] if bias is None else [to.value(bias).broadcast((1, 1, 1, *bias.shape))]
    to.emit(
        Operation.CONVOLVE,
        _pictures(to.value(call.result)),
        _padded(to, pictures, padding),
        kernels,
        *biases,
    )


@lowers(_aten.convolution_backward.default)
def _convolve_backward(to: Lowering, call: Call) -> None:
    gradient, x, weight, _, *options, wanted = call.arguments
    if options[3]:
        raise NotCoveredError("gradients of transposed convolutions are not among the native operations")
    padding = _plain_padding(options)
    of_x, of_weight, of_bias = call.result
    pictures, kernels = _pictures(to.value(gradient)), _kernels(to.value(weight))
    if wanted[0]:
        turned, around = _turned(kernels, padding)
        to.emit(Operation.CONVOLVE, _pictures(to.value(of_x)), _padded(to, pictures, around), turned)
    if wanted[1]:
        padded = _padded(to, _pictures(to.value(x)), padding)
        to.emit(
            Operation.CONVOLVE_WEIGHTS, _kernels(to.value(of_weight)), padded, _padded(to, pictures, [0, 0])
        )
    if wanted[2]:
        # Picture by picture: a sum over all pixels of all pictures would lose more.
        each = to.temporary((pictures.sizes[0], 1, 1, pictures.sizes[3]))
        to.reduce(Operation.SUM, each, pictures, [1, 2])
        to.reduce(Operation.SUM, to.value(of_bias), each, [0, 1, 2])


@lowers(_aten.max_pool2d_with_indices.default)
def _pool(to: Lowering, call: Call) -> None:
    result, places = call.result
    _need_halving(call, 0, result.shape)
    pictures = _pictures(to.value(call.arguments[0]))
    to.emit(Operation.MAX_POOL, _pictures(to.value(result)), pictures)
    # Read by second derivatives alone: the backward looks for the largest again.
    to.emit(Operation.MAX_POOL_PLACES, _pictures(to.value(places)), pictures)


@lowers(_aten.max_pool2d_with_indices_backward.default)
def _pool_backward(to: Lowering, call: Call) -> None:
    gradient, x = call.arguments[:2]
    _need_halving(call, 1, gradient.shape)
    result, pictures = to.value(call.result), to.value(x)
    if result.strides != pictures.strides:
        alike = Value(to.temporary(result.sizes).buffer, 0, result.sizes, result.strides)
        pictures = to.elementwise(Operation.COPY, alike, pictures)
    to.emit(
        Operation.MAX_POOL_BACKWARD, _pictures(result), _pictures(to.value(gradient)), _pictures(pictures)
    )


def _pictures(value: Value) -> Value:
    """``[B, H, W, C]``; a series has one line."""
    if len(value.sizes) == 4:
        return value.permuted((0, 2, 3, 1))
    if len(value.sizes) != 3:
        raise NotCoveredError("pictures without a batch are not among the native operations")
    (b, c, t), (of_b, of_c, of_t) = value.sizes, value.strides
    return Value(value.buffer, value.offset, (b, 1, t, c), (of_b, t * of_t, of_t, of_c))


def _kernels(value: Value) -> Value:
    """``[O, C, h, w]``; those of a series have one line."""
    *before, width = zip(value.sizes, value.strides, strict=True)
    axes = [*before, (1, 0), width] if len(before) == 2 else [*before, width]
    return Value(value.buffer, value.offset, tuple(s for s, _ in axes), tuple(s for _, s in axes))


def _turned(kernels: Value, padding: list[int]) -> tuple[Value, list[int]]:
    """Kernels and padding that take a convolution's results back to what it read.

    Every pixel had its part in those windows that it lies in: these are kernels turned round, over results
    with so much padding that every window is whole.
    """
    sizes = kernels.sizes[2:]
    around = [size - 1 - p for size, p in zip(sizes, padding, strict=True)]
    if min(around) < 0:
        raise NotCoveredError("convolutions padded beyond their kernels are not among the native operations")
    outputs, inputs, line, pixel = kernels.strides
    first = kernels.offset + (sizes[0] - 1) * line + (sizes[1] - 1) * pixel
    shape = (kernels.sizes[1], kernels.sizes[0], *sizes)
    return Value(kernels.buffer, first, shape, (inputs, outputs, -line, -pixel)), around


def _padded(to: Lowering, pictures: Value, padding: list[int]) -> Value:
    """Pictures between zeros, pixel behind pixel."""
    b, h, w, c = pictures.sizes
    lines, pixels = padding
    sizes = (b, h + 2 * lines, w + 2 * pixels, c)
    dense = dense_strides(sizes)
    if not any(padding) and dense == pictures.strides:
        return pictures
    whole = to.temporary(sizes)
    if any(padding):
        to.elementwise(Operation.COPY, whole, 0)
    inner = Value(whole.buffer, lines * whole.strides[1] + pixels * whole.strides[2], pictures.sizes, dense)
    to.elementwise(Operation.COPY, inner, pictures)
    return whole


def _plain_padding(options: Any) -> list[int]:
    stride, padding, dilation, _, beyond, groups = options[:6]
    if groups != 1 or any(s != 1 for s in (*stride, *dilation)) or any(beyond):
        raise NotCoveredError(
            "convolutions with strides, dilation or groups are not among the native operations"
        )
    return [0] * (2 - len(padding)) + list(padding)


def _need_halving(call: Call, position: int, pooled: torch.Size) -> None:
    x = call.arguments[1 if position else 0]
    kernel, stride, padding, dilation = (
        argument(call, position + 1 + i, name, default)
        for i, (name, default) in enumerate(
            [("kernel_size", []), ("stride", []), ("padding", 0), ("dilation", 1)]
        )
    )
    kernel, stride, padding, dilation = (_pair(o) for o in (kernel, stride or kernel, padding, dilation))
    halved = [-(-size // k) for size, k in zip(x.shape[-2:], kernel, strict=True)]
    if (
        kernel != stride
        or max(kernel) > 2
        or any(padding)
        or max(dilation) > 1
        or halved != list(pooled[-2:])
    ):
        raise NotCoveredError("pooling but by two, of all pixels, is not among the native operations")


def _pair(option: Any) -> list[int]:
    given = [option] if isinstance(option, int) else list(option)
    return given * 2 if len(given) == 1 else given
