"""A step of an optimiser as tables that the native kernel reads."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmfl_fast.kernels.client_step import (  # noqa: F401 - they fill the table
    operators,
    picture_operators,
    product_operators,
    row_operators,
)
from mmfl_fast.kernels.client_step.instructions import MAX_AXES, Instruction, Operation, Value
from mmfl_fast.kernels.client_step.lowering import Lowering
from mmfl_fast.kernels.client_step.recording import Recording

_Int64Array = npt.NDArray[np.int64]
# Buffers begin on a cache line.
_ALIGNMENT = 16
_REDUCTIONS = (Operation.SUM, Operation.LARGEST)
# Operations whose values have the same axes, which may come in any order.
_ANY_ORDER = (*_REDUCTIONS, *(o for o in Operation if Operation.COPY <= o <= Operation.SELECT))
# Columns of a packed panel, of the widest vectors that the kernel is built for.
_PANEL = 32
# Pixels whose gradients a packed operand holds, but for larger pictures; kSummedPixels of the kernel.
_SUMMED_PIXELS = 1024


@dataclass(frozen=True)
class StepProgram:
    """What the native kernel needs to take steps.

    Attributes:
        values: ``[V, 10]``, buffer, offset, sizes and strides.
        instructions: ``[I, 6]``, operation, output, operands and the ignored label.
        buffers: ``[B]``, addresses of the constants, and 0 where a call puts one in.
        external: number of buffers whose addresses the caller gives; they come first.
        arena: buffer numbers of the temporaries, the batch among them.
        arena_offsets: of each of these, in floats.
        arena_size: floats that they take together.
        packed_size: floats that a packed operand takes.
        loss: number of the value that holds the loss.
        constants: what ``buffers`` points to.
    """

    values: _Int64Array
    instructions: _Int64Array
    buffers: _Int64Array
    external: int
    arena: _Int64Array
    arena_offsets: _Int64Array
    arena_size: int
    packed_size: int
    loss: int
    constants: tuple[Tensor, ...]

    @property
    def scratch_size(self) -> int:
        """Floats that a call needs to work in."""
        return self.arena_size + self.packed_size


def build_program(
    recording: Recording,
    external: Sequence[Tensor],
    batch: Sequence[Tensor],
    moving: Mapping[int, Sequence[int]],
    largest_norm: float | None = None,
) -> StepProgram:
    """Make a program of what was recorded.

    Args:
        recording: its gradients belong to the tensors in ``moving``, in order.
        external: tensors that the step reads and that lie in memory of the caller: buffers 0, 1, ...
        batch: tensors of the batch: the buffers behind them.
        moving: number of the parameter's buffer -> those of what the optimiser remembers of it: nothing or a
            velocity for SGD, the means of gradients and of their squares for Adam.
        largest_norm: of all gradients together; longer ones are scaled down. None for any.

    Raises:
        NotCoveredError: something in the step has no native form.
    """
    lowering = Lowering([*external, *batch])
    for call in recording.calls:
        lowering.call(call)
    loss = lowering.value(recording.loss)
    gradients = [lowering.value(g) for g in recording.gradients]
    factor = (
        lowering.value(1) if largest_norm is None else _clipping_factor(lowering, gradients, largest_norm)
    )
    updates = [
        _update(external, number, kept, gradient, factor)
        for (number, kept), gradient in zip(moving.items(), gradients, strict=True)
    ]
    used = {loss.buffer, *(o.buffer for parts in updates for part in parts for o in part.operands)}
    needed = [_in_memory_order(i) for i in _without_unused(lowering.instructions, used)]
    instructions = _with_updates(needed, updates, keep=loss.buffer)
    sizes = lowering.sizes
    temporaries = [b for b in range(len(external), len(sizes)) if b not in lowering.constants]
    first_batch = range(len(external), len(external) + len(batch))
    offsets, arena_size = _arrange(instructions, temporaries, sizes, first_batch, loss.buffer)
    return _tables(lowering, instructions, loss, len(external), offsets, arena_size)


def _clipping_factor(to: Lowering, gradients: Sequence[Value], largest_norm: float) -> Value:
    total = to.temporary((len(gradients),))
    for number, gradient in enumerate(gradients):
        to.emit(Operation.SUM_OF_SQUARES, Value(total.buffer, number, (), ()), gradient)
    factor = to.temporary(())
    to.reduce(Operation.SUM, factor, total, [0])
    to.emit(Operation.SQUARE_ROOT, factor, factor)
    to.elementwise(Operation.DIVIDE, factor, largest_norm, factor)
    return to.elementwise(Operation.MINIMUM, factor, factor, 1)


def _update(
    external: Sequence[Tensor], number: int, kept: Sequence[int], gradient: Value, factor: Value
) -> list[Instruction]:
    whole = external[number]
    parameter = Value(number, 0, tuple(whole.shape), tuple(whole.stride()))
    memory = [replace(parameter, buffer=buffer) for buffer in kept]
    if len(memory) < 2:
        return [Instruction(Operation.UPDATE, parameter, (gradient, factor, *memory))]
    mean, square = memory
    return [
        Instruction(Operation.UPDATE_MOMENTS, mean, (gradient, factor, square)),
        Instruction(Operation.UPDATE_BY_MOMENTS, parameter, (mean, square)),
    ]


def _in_memory_order(instruction: Instruction) -> Instruction:
    """The same with the axes in the order in which the elements lie, so that its lines are not strided."""
    if instruction.operation not in _ANY_ORDER:
        return instruction
    values = (instruction.output, *instruction.operands)
    leading = instruction.operands[0] if instruction.operation in _REDUCTIONS else instruction.output
    axes = sorted(range(len(leading.sizes)), key=lambda a: (leading.sizes[a] != 1, -leading.strides[a]))
    output, *operands = (value.permuted(axes) for value in values)
    return replace(instruction, output=output, operands=tuple(operands))


def _without_unused(instructions: Sequence[Instruction], used: set[int]) -> list[Instruction]:
    kept = []
    used = set(used)
    for instruction in reversed(instructions):
        if instruction.output.buffer in used:
            used.update(operand.buffer for operand in instruction.operands)
            kept.append(instruction)
    return kept[::-1]


def _with_updates(
    instructions: list[Instruction], updates: Sequence[list[Instruction]], keep: int
) -> list[Instruction]:
    """Put every update behind the last instruction that reads its parameter, or makes what it needs.

    A gradient that is one matrix product and serves nothing else, its length included, is not stored: the
    update of SGD takes it from the registers.
    """
    fused = []
    for parts in updates:
        update = parts[0]
        gradient = update.operands[0]
        makers = [i for i in instructions if i.output.buffer == gradient.buffer]
        others = [part for other in updates for part in other]
        readers = [i for i in (*instructions, *others) for o in i.operands if o.buffer == gradient.buffer]
        maker = makers[0] if len(makers) == 1 and len(readers) == 1 else None
        if (
            maker is not None
            and update.operation is Operation.UPDATE
            and maker.operation is Operation.PRODUCT
            and len(maker.output.sizes) == 2
            and maker.operands[1].strides[1] == 1
            and gradient == maker.output
            and gradient.buffer != keep
        ):
            instructions = [i for i in instructions if i is not maker]
            operands = (*maker.operands, *update.operands[2:])
            parts = [replace(update, operation=Operation.UPDATE_PRODUCT, operands=operands)]
        fused.append(parts)
    after: dict[int, list[Instruction]] = {}
    for parts in fused:
        parameter = parts[-1].output.buffer
        made = {operand.buffer for part in parts for operand in part.operands}
        last = -1
        for number, instruction in enumerate(instructions):
            if instruction.output.buffer in made or any(o.buffer == parameter for o in instruction.operands):
                last = number
        after.setdefault(last, []).extend(parts)
    placed = list(after.get(-1, []))
    for number, instruction in enumerate(instructions):
        placed += [instruction, *after.get(number, [])]
    return placed


def _arrange(
    instructions: Sequence[Instruction],
    temporaries: Sequence[int],
    sizes: Sequence[int],
    batch: range,
    loss: int,
) -> tuple[dict[int, int], int]:
    """Give the temporaries places, which those that are not needed at the same time share."""
    first: dict[int, int] = dict.fromkeys(batch, -1)
    last: dict[int, int] = dict(first)
    for number, instruction in enumerate(instructions):
        for value in (instruction.output, *instruction.operands):
            first.setdefault(value.buffer, number)
            last[value.buffer] = number
    last[loss] = len(instructions)
    # Start, end and last use of those that are needed yet, by place.
    placed: list[tuple[int, int, int]] = []
    offsets: dict[int, int] = {}
    total = 0
    for buffer in sorted((b for b in temporaries if b in first), key=lambda b: (first[b], b)):
        room = -(-sizes[buffer] // _ALIGNMENT) * _ALIGNMENT
        placed = [p for p in placed if p[2] >= first[buffer]]
        offset = 0
        for start, end, _ in placed:
            if offset + room <= start:
                break
            offset = end
        insort(placed, (offset, offset + room, last[buffer]))
        offsets[buffer] = offset
        total = max(total, offset + room)
    return offsets, total


def _packed_size(instruction: Instruction) -> int:
    if instruction.operation in (Operation.PRODUCT, Operation.ADD_PRODUCT, Operation.UPDATE_PRODUCT):
        depth, columns = instruction.operands[1].sizes[-2:]
    elif instruction.operation is Operation.CONVOLVE:
        columns, *window = instruction.operands[1].sizes
        depth = math.prod(window)
    elif instruction.operation is Operation.CONVOLVE_WEIGHTS:
        pictures, *pixels, columns = instruction.operands[1].sizes
        depth = math.prod(pixels)
        depth *= min(pictures, max(1, _SUMMED_PIXELS // depth))
    else:
        return 0
    return -(-columns // _PANEL) * _PANEL * depth


def _tables(
    lowering: Lowering,
    instructions: Sequence[Instruction],
    loss: Value,
    external: int,
    offsets: Mapping[int, int],
    arena_size: int,
) -> StepProgram:
    numbers: dict[Value, int] = {}
    rows = []
    packed = 0
    for i in instructions:
        operands = [numbers.setdefault(o, len(numbers)) for o in i.operands]
        output = numbers.setdefault(i.output, len(numbers))
        rows.append([i.operation, output, *operands, *[-1] * (3 - len(operands)), i.ignored_label])
        packed = max(packed, _packed_size(i))
    loss_number = numbers.setdefault(loss, len(numbers))
    values = []
    for v in numbers:
        missing = MAX_AXES - len(v.sizes)
        values.append([v.buffer, v.offset, *[1] * missing, *v.sizes, *[0] * missing, *v.strides])
    buffers = np.zeros(len(lowering.sizes), dtype=np.int64)
    for buffer, contents in lowering.constants.items():
        buffers[buffer] = contents.data_ptr()
    # A buffer that no instruction uses any more: any address will do.
    unused = set(range(external, len(buffers))) - set(lowering.constants) - set(offsets)
    places = {**offsets, **dict.fromkeys(unused, 0)}
    return StepProgram(
        values=np.array(values, dtype=np.int64),
        instructions=np.array(rows, dtype=np.int64),
        buffers=buffers,
        external=external,
        arena=np.array(list(places), dtype=np.int64),
        arena_offsets=np.array(list(places.values()), dtype=np.int64),
        arena_size=arena_size,
        packed_size=packed,
        loss=loss_number,
        constants=tuple(lowering.constants.values()),
    )
