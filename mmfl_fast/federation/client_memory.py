"""Memory for the parameters of clients in training, kept from round to round.

A system takes large blocks back when they are freed and clears them when they are asked for again; for small
models that costs as much as the training.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmfl_fast.federation.algorithm import ClientState

# A cache line, in floats.
_LINE = 16
_FLOAT_BYTES = 4
# Floats that are asked for at a time.
_SLAB = 1 << 22
_Block = npt.NDArray[np.float32]


class _Lent(np.ndarray[Any, np.dtype[np.float32]]):
    """A block, and what tensors are made from: such a view holds on to the block, not to its owner."""


class ClientMemory:
    """Room for parameters. A block is used again when no tensor lies in it any more."""

    def __init__(self) -> None:
        self._ready: dict[int, list[_Block]] = defaultdict(list)
        self._returned: dict[int, list[_Block]] = defaultdict(list)

    def begin_round(self) -> None:
        """Let go of the blocks that the last round did not need."""
        self._ready, self._returned = self._returned, defaultdict(list)

    def like(self, params: ClientState) -> ClientState:
        """Contiguous tensors of the shapes of CPU tensors, not initialised; float32 ones share a block."""
        places, size = {}, 0
        for name, tensor in params.items():
            if tensor.dtype == torch.float32:
                places[name] = size
                size += -(-tensor.numel() // _LINE) * _LINE
        block = self._block(size)
        # Cut by NumPy: a torch call hands Python's lock over, and a client has many such small steps.
        return {
            name: torch.from_numpy(_Lent(tensor.shape, np.float32, block, _FLOAT_BYTES * places[name]))
            if name in places
            else torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for name, tensor in params.items()
        }

    def _block(self, size: int) -> _Block:
        ready = self._ready[size]
        try:
            whole = ready.pop()
        except IndexError:
            pitch = size + _LINE
            # NumPy asks for huge pages for large arrays: small ones cost a cache part of its size.
            slab = np.empty((max(1, _SLAB // pitch), pitch), dtype=np.float32)
            whole, *others = slab
            ready += others
        first = -whole.ctypes.data // _FLOAT_BYTES % _LINE
        lent = whole[first : first + size].view(_Lent)
        # It ends with the last tensor that lies in it.
        weakref.finalize(lent, self._give_back, whole).atexit = False
        return lent

    def _give_back(self, whole: _Block) -> None:
        self._returned[len(whole) - _LINE].append(whole)
