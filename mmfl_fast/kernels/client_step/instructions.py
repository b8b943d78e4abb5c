"""What a step consists of: values in buffers, and instructions that work on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

MAX_AXES = 4
# Why a step that looks at numbers while it is recorded has no native form.
VALUE_SEEN = "what it does depends on the value of a tensor"


class NotCoveredError(Exception):
    """A step has something that the native kernel does not know; the message says what."""


class Operation(IntEnum):
    """See ``csrc/client_step/client_step.h``; the order is the same."""

    COPY = 0
    NEGATE = 1
    ABSOLUTE = 2
    SQUARE_ROOT = 3
    EXPONENTIAL = 4
    LOGARITHM = 5
    LOG_OF_ONE_PLUS = 6
    SINE = 7
    COSINE = 8
    HYPERBOLIC_TANGENT = 9
    SIGMOID = 10
    RELU = 11
    RELU_BACKWARD = 12
    HYPERBOLIC_TANGENT_BACKWARD = 13
    SIGMOID_BACKWARD = 14
    ADD = 15
    SUBTRACT = 16
    MULTIPLY = 17
    DIVIDE = 18
    POWER = 19
    MAXIMUM = 20
    MINIMUM = 21
    EQUAL = 22
    NOT_EQUAL = 23
    LESS = 24
    LESS_EQUAL = 25
    SELECT = 26
    SUM = 27
    SUM_OF_SQUARES = 28
    LARGEST = 29
    LOG_SOFTMAX = 30
    LOG_SOFTMAX_BACKWARD = 31
    PICK = 32
    SPREAD = 33
    TAKE_ROWS = 34
    PRODUCT = 35
    ADD_PRODUCT = 36
    CONVOLVE = 37
    CONVOLVE_WEIGHTS = 38
    MAX_POOL = 39
    MAX_POOL_BACKWARD = 40
    MAX_POOL_PLACES = 41
    UPDATE = 42
    UPDATE_PRODUCT = 43
    UPDATE_MOMENTS = 44
    UPDATE_BY_MOMENTS = 45


def dense_strides(sizes: Sequence[int]) -> tuple[int, ...]:
    """Strides of elements in C order."""
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


@dataclass(frozen=True)
class Value:
    """A strided view of a buffer, in elements.

    Attributes:
        buffer: number of the buffer.
        offset: of the first element.
        sizes: one per axis, at most ``MAX_AXES``.
        strides: one per axis, 0 where the value is repeated.
    """

    buffer: int
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def permuted(self, axes: Sequence[int]) -> Value:
        """The value with its axes in another order."""
        sizes, strides = (tuple(of[a] for a in axes) for of in (self.sizes, self.strides))
        return Value(self.buffer, self.offset, sizes, strides)

    def broadcast(self, sizes: tuple[int, ...]) -> Value:
        """The value repeated to ``sizes`` by the rules of broadcasting."""
        missing = len(sizes) - len(self.sizes)
        strides = [0] * missing + [
            0 if own == 1 else stride for own, stride in zip(self.sizes, self.strides, strict=True)
        ]
        return Value(self.buffer, self.offset, sizes, tuple(strides))


@dataclass(frozen=True)
class Instruction:
    """One operation.

    Attributes:
        operation: what is done.
        output: where the result goes.
        operands: at most three.
        ignored_label: of the operations that take labels.
    """

    operation: Operation
    output: Value
    operands: tuple[Value, ...]
    ignored_label: int = 0
