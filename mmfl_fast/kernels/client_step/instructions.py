"""What a step consists of: values in buffers, and instructions that work on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

MAX_AXES = 4


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
    ADD = 13
    SUBTRACT = 14
    MULTIPLY = 15
    DIVIDE = 16
    POWER = 17
    MAXIMUM = 18
    MINIMUM = 19
    EQUAL = 20
    NOT_EQUAL = 21
    LESS = 22
    LESS_EQUAL = 23
    SELECT = 24
    SUM = 25
    LARGEST = 26
    LOG_SOFTMAX = 27
    LOG_SOFTMAX_BACKWARD = 28
    PICK = 29
    SPREAD = 30
    PRODUCT = 31
    ADD_PRODUCT = 32
    UPDATE = 33
    UPDATE_PRODUCT = 34


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
