"""Where the tensors of a row lie in one block of memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Bytes of a cache line, at which torch begins a tensor: on where one lies the rounding of a product can
# depend.
LINE = 64

Signature = tuple[tuple[str, torch.Size, torch.dtype], ...]


def signature(parameters: Mapping[str, Tensor]) -> Signature:
    """Names, shapes and dtypes; rows of one signature can be stacked."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in parameters.items())


def pitch(shape: torch.Size, dtype: torch.dtype) -> int:
    """Bytes from the beginning of a tensor to that of the next one."""
    return -(-shape.numel() * dtype.itemsize // LINE) * LINE


def placed(tensor: Tensor) -> Tensor:
    """The same values as a row has them in a block: without gaps, from the beginning of a cache line."""
    tensor = tensor.detach()
    if tensor.is_contiguous() and tensor.data_ptr() % LINE == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


class RowLayout:
    """Rows of one signature, each in a block of bytes of its own, in which every tensor begins a line.

    Attributes:
        signature: of the rows.
        size: bytes of a block.
    """

    def __init__(self, kind: Signature) -> None:
        self.signature = kind
        self.size = 0
        self._places: list[tuple[str, torch.dtype, torch.Size, tuple[int, ...], int]] = []
        for name, shape, dtype in kind:
            strides = torch.empty(shape, device="meta").stride()
            self._places.append((name, dtype, shape, strides, self.size // dtype.itemsize))
            self.size += pitch(shape, dtype)

    def views(self, blocks: Tensor) -> dict[str, Tensor]:
        """The row in a block, uint8 ``[size]``, or the stacks ``[n, ...]`` in n of them, ``[n, size]``."""
        typed = {dtype: blocks.view(dtype) for _, _, dtype in self.signature}
        found = {}
        for name, dtype, shape, strides, offset in self._places:
            whole = typed[dtype]
            lead, leading = whole.shape[:-1], whole.stride()[:-1]
            first = whole.storage_offset() + offset
            found[name] = whole.as_strided((*lead, *shape), (*leading, *strides), first)
        return found

    def filled(self, row: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """A block with a copy of a row."""
        block = torch.empty(self.size, dtype=torch.uint8, device=device)
        for name, place in self.views(block).items():
            place.copy_(row[name])
        return block
