"""Steps by the C++ kernel on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmfl_fast.kernels.client_step.program import StepProgram
from mmfl_fast.kernels.extension import _C

_ELEMENTS = {torch.float32: 0, torch.bool: 1, torch.int64: 2}
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Sources:
    """What batches are gathered from.

    Attributes:
        tensors: ``[N, ...]`` each, contiguous; float32, bool or int64.
        table: ``[inputs, 5]``, address, width, dtype code, buffer number and padding.
    """

    tensors: tuple[Tensor, ...]
    table: npt.NDArray[np.int64]

    @staticmethod
    def of(tensors: Sequence[Tensor], first_buffer: int, padding: Sequence[int]) -> Sources:
        """Number the buffers of the batch from ``first_buffer`` on."""
        rows = [
            (t.data_ptr(), t[0].numel(), _ELEMENTS[t.dtype], first_buffer + i, pad)
            for i, (t, pad) in enumerate(zip(tensors, padding, strict=True))
        ]
        return Sources(tuple(tensors), np.array(rows, dtype=np.int64))


class Rates(NamedTuple):
    """Numbers of an optimiser; of SGD the first three, of Adam all but the momentum.

    Attributes:
        learning_rate: step size.
        momentum: factor of the velocity.
        weight_decay: of SGD added to the gradient, of Adam decoupled.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        epsilon: added to the root of the latter.
        steps_before: taken with these means.
        cosine_period: steps in which the rate falls to 0 as half a cosine; 0 keeps it.
    """

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0
    steps_before: float = 0.0
    cosine_period: float = 0.0


def take_steps(
    program: StepProgram,
    external: Sequence[Tensor],
    written: Sequence[Tensor],
    sources: Sources,
    rows: int,
    row_count: int,
    batch_size: int,
    capacity: int,
    rates: Rates,
    scratch: Tensor,
    losses: int,
) -> bool:
    """Take a step for every batch, on the calling thread and without Python's lock.

    Args:
        program: of the step.
        external: contiguous float32 tensors in the order of ``build_program``; what the optimiser remembers
            is written to.
        written: the same, with the tensors that take the parameters' new values in the place of the old.
        sources: of the batches.
        rows: address of int64 row numbers, batch by batch.
        row_count: how many.
        batch_size: rows of every batch; the last may have less.
        capacity: rows that the step was recorded with, at least ``batch_size``.
        rates: of the optimiser that the program was made for.
        scratch: float32, at least ``program.scratch_size`` elements.
        losses: address of float32 memory that takes the loss of every batch.

    Returns:
        Whether all parameters that were moved are finite.

    Raises:
        IndexError: a label is no column of the logits.
    """
    base = scratch.data_ptr()
    buffers = program.buffers.copy()
    buffers[program.arena] = base + _FLOAT_BYTES * program.arena_offsets
    buffers[: program.external] = [t.data_ptr() for t in external]
    later = buffers.copy()
    later[: program.external] = [t.data_ptr() for t in written]
    return _C.client_step(
        program.values,
        program.instructions,
        buffers,
        later,
        sources.table,
        rows,
        row_count,
        batch_size,
        capacity,
        np.array(rates, dtype=np.float64),
        base + _FLOAT_BYTES * program.arena_size,
        program.packed_size,
        program.loss,
        losses,
    )
