"""From torch calls to instructions.

Tensors are told by their storage. A call whose result shares the storage of a known tensor is a view and
needs no instruction; the shape, strides and offset of the recorded tensor say all about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmfl_fast.kernels.client_step.instructions import (
    MAX_AXES,
    VALUE_SEEN,
    Instruction,
    NotCoveredError,
    Operation,
    Value,
    dense_strides,
)
from mmfl_fast.kernels.client_step.recording import Call

Number = float | int | bool
# Numbers up to here are exact in float32, in which labels and truth values are kept, too.
_LARGEST_INTEGER = 2**24
_DTYPES = (torch.float32, torch.int64, torch.bool)
_aten = torch.ops.aten
# Their values do not depend on the tensor they are shaped after.
_SHAPED_LIKE = (
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
)
# What keeps integers small and whole, whatever the data.
_WHOLE = (
    _aten.sum.default,
    _aten.sum.dim_IntList,
    _aten.clamp.default,
    _aten.where.self,
    _aten.masked_fill.Scalar,
    _aten.masked_fill.Tensor,
    _aten.max_pool2d_with_indices.default,
    _aten.index.Tensor,
    _aten._to_copy.default,
    _aten.clone.default,
    _aten.stack.default,
    _aten.cat.default,
)


class Lowering:
    """Buffers and instructions of a step, call by call.

    Attributes:
        sizes: elements of every buffer; the named ones come first.
        constants: buffer number -> its contents, float32.
        instructions: in order.
    """

    def __init__(self, named: Sequence[Tensor]) -> None:
        """Begin with the tensors that a step is given, buffers 0, 1, ...; each has a storage of its own."""
        self.sizes: list[int] = []
        self.constants: dict[int, Tensor] = {}
        self.instructions: list[Instruction] = []
        self._places: dict[int, tuple[int, int]] = {}
        self._given = len(named)
        self._numbers: dict[float, Value] = {}
        for tensor in named:
            self._places[_storage(tensor)] = (self._buffer(tensor.numel()), 0)

    def call(self, call: Call) -> None:
        """Add what a call does.

        Raises:
            NotCoveredError: the call is of another kind than those in :mod:`.operators`.
        """
        function = call.function
        results = _tensors(call.result)
        if torch.Tag.data_dependent_output in function.tags:
            raise NotCoveredError(VALUE_SEEN)
        if function._schema.is_mutable and not self._may_write(call):
            raise NotCoveredError(f"{function} writes to its argument")
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise NotCoveredError(f"{function} draws random numbers")
        arguments = [t for a in (*call.arguments, *call.keywords.values()) for t in _tensors(a)]
        known = [self._places.get(_storage(t)) for t in arguments]
        # What Python wrote down, and what is made of that.
        fresh = function is _aten.lift_fresh.default
        constant = fresh or all(p is not None and p[0] in self.constants for p in known)
        for tensor in results:
            _refuse_unknown_kind(function, tensor, constant)
        if all(_storage(t) in self._places for t in results) and not function._schema.is_mutable:
            return None
        if fresh:
            return self._keep_constants(arguments + results)
        if None in known:
            raise NotCoveredError("it reads a tensor that is neither in its parameters, batch nor context")
        if constant or function in _SHAPED_LIKE:
            return self._keep_constants(results)
        lower = LOWERINGS.get(function)
        if lower is None:
            by_value = torch.Tag.dynamic_output_shape in function.tags
            raise NotCoveredError(
                VALUE_SEEN if by_value else f"{function} is not among the native operations"
            )
        if any(t.dtype == torch.int64 for t in results) and function not in _WHOLE:
            raise NotCoveredError(f"{function} of integers is not among the native operations")
        lower(self, call)
        return None

    def value(self, what: Tensor | Number) -> Value:
        """Where a tensor lies, or a number."""
        if not isinstance(what, Tensor):
            number = float(what)
            if number not in self._numbers:
                buffer = self._constant(torch.tensor([number], dtype=torch.float32))
                self._numbers[number] = Value(buffer, 0, (), ())
            return self._numbers[number]
        storage = _storage(what)
        if storage not in self._places:
            self._places[storage] = (self._buffer(what.untyped_storage().nbytes() // what.element_size()), 0)
        buffer, shift = self._places[storage]
        return Value(buffer, shift + int(what.storage_offset()), tuple(what.shape), tuple(what.stride()))

    def temporary(self, sizes: Sequence[int]) -> Value:
        """Room for elements in C order."""
        return Value(self._buffer(math.prod(sizes)), 0, tuple(sizes), dense_strides(sizes))

    def alias(self, result: Tensor, source: Tensor) -> None:
        """Let a result be its source, without a copy where their elements lie alike."""
        place = self.value(source)
        if result.stride() == source.stride() and result.storage_offset() == 0:
            self._places[_storage(result)] = (place.buffer, place.offset)
        else:
            self.emit(Operation.COPY, self.value(result), place)

    def emit(self, operation: Operation, output: Value, *operands: Value, ignored_label: int = 0) -> Value:
        """Add an instruction as it is."""
        self.instructions.append(Instruction(operation, output, operands, ignored_label))
        return output

    def elementwise(
        self, operation: Operation, output: Value | Tensor, *operands: Value | Tensor | Number
    ) -> Value:
        """Add an instruction whose operands are repeated to the shape of the output."""
        to = output if isinstance(output, Value) else self.value(output)
        values = [o if isinstance(o, Value) else self.value(o) for o in operands]
        return self.emit(operation, to, *(v.broadcast(to.sizes) for v in values))

    def reduce(self, operation: Operation, output: Value, source: Value, axes: Sequence[int]) -> Value:
        """Reduce ``axes`` of the source; the output has its axes, or all but these."""
        count = len(source.sizes)
        reduced = {a % count for a in axes} if count else set()
        strides = iter(output.strides)
        keeps = len(output.sizes) == count
        aligned = []
        for axis in range(count):
            stride = next(strides) if keeps or axis not in reduced else 0
            aligned.append(0 if axis in reduced else stride)
        to = Value(output.buffer, output.offset, source.sizes, tuple(aligned))
        return self.emit(operation, to, source)

    def _may_write(self, call: Call) -> bool:
        """Whether a call that changes its first argument has a native form, and nothing else lies there."""
        if call.function not in LOWERINGS:
            return False
        buffer, _ = self._places.get(_storage(call.arguments[0]), (-1, 0))
        own = sum(other == buffer for other, _ in self._places.values()) == 1
        return own and buffer >= self._given and buffer not in self.constants

    def _keep_constants(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if _storage(tensor) in self._places:
                continue
            storage = tensor.untyped_storage()
            contents = torch.empty(0, dtype=tensor.dtype).set_(storage)
            if tensor.dtype == torch.int64 and bool((contents.abs() > _LARGEST_INTEGER).any()):
                raise NotCoveredError("it has an integer beyond 2^24")
            self._places[_storage(tensor)] = (self._constant(contents.float()), 0)

    def _constant(self, contents: Tensor) -> int:
        buffer = self._buffer(contents.numel())
        self.constants[buffer] = contents
        return buffer

    def _buffer(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1


LOWERINGS: dict[torch._ops.OpOverload, Callable[[Lowering, Call], None]] = {}


def lowers(
    *functions: torch._ops.OpOverload,
) -> Callable[[Callable[[Lowering, Call], None]], Callable[[Lowering, Call], None]]:
    """Register how calls of these operators become instructions."""

    def register(lower: Callable[[Lowering, Call], None]) -> Callable[[Lowering, Call], None]:
        LOWERINGS.update(dict.fromkeys(functions, lower))
        return lower

    return register


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(what: object) -> list[Tensor]:
    if isinstance(what, Tensor):
        return [what]
    if isinstance(what, (list, tuple)):
        return [t for t in what if isinstance(t, Tensor)]
    return []


def _refuse_unknown_kind(function: torch._ops.OpOverload, tensor: Tensor, constant: bool) -> None:
    # Torch has done the arithmetic of constants, in any precision.
    known = tensor.dtype in _DTYPES or (constant and tensor.dtype == torch.float64)
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not known:
        raise NotCoveredError(f"{function} gives {tensor.dtype}")
    if tensor.numel() == 0:
        raise NotCoveredError(f"{function} gives an empty tensor")
    if tensor.dim() > MAX_AXES:
        raise NotCoveredError(f"{function} gives {tensor.dim()} axes")
    if tensor.is_neg() or tensor.is_conj():
        raise NotCoveredError(f"{function} gives a lazily negated tensor")


def argument(call: Call, position: int, name: str, default: object = None) -> object:
    """An argument of a call, by position or by name."""
    if position < len(call.arguments):
        return call.arguments[position]
    return call.keywords.get(name, default)


def arguments(call: Call, defaults: Mapping[str, object]) -> list[object]:
    """All arguments of a call in the order of ``defaults``."""
    return [argument(call, i, name, default) for i, (name, default) in enumerate(defaults.items())]
