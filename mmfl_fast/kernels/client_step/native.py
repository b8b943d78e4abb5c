"""Steps by the C++ kernel on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def take_steps(
    program: StepProgram,
    external: Sequence[Tensor],
    sources: Sources,
    rows: Tensor,
    batch_size: int,
    capacity: int,
    rates: tuple[float, float, float],
    arena: Tensor,
    losses: Tensor,
) -> None:
    """See :func:`mmfl_fast.kernels.client_step.take_steps`."""
    buffers = program.buffers.copy()
    buffers[: program.external] = [t.data_ptr() for t in external]
    base = arena.data_ptr()
    buffers[program.arena] = base + _FLOAT_BYTES * program.arena_offsets
    _C.client_step(
        program.values,
        program.instructions,
        buffers,
        sources.table,
        rows.data_ptr(),
        len(rows),
        batch_size,
        capacity,
        *rates,
        base + _FLOAT_BYTES * program.arena_size,
        program.packed_size,
        program.loss,
        losses.data_ptr(),
    )
