"""Where the tensors of a row lie in one block of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Bytes of a cache line, at which torch begins a tensor: on where one lies the rounding of a product can
# depend.
LINE = 64

# Of which some are copied at a time.
_ROWS = 1024

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

    def kept(self, rows: Sequence[Mapping[str, Tensor]]) -> list[Any]:
        """Copies of rows, each in the form that :meth:`read` takes."""
        return [self._filled(row) for row in rows]

    def read(self, row: Any) -> dict[str, Tensor]:
        """The named tensors of a row that was kept."""
        return self._views(row)

    def stacked(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Rows that were kept as ``[n, ...]`` without gaps; a few are in memory once more at a time."""
        stacks = {name: torch.empty(len(rows), *shape, dtype=dtype) for name, shape, dtype in self.signature}
        for first in range(0, len(rows), _ROWS):
            some = self._views(torch.stack(list(rows[first : first + _ROWS])))
            for name, stack in stacks.items():
                stack[first : first + _ROWS] = some[name]
        return stacks

    def _views(self, blocks: Tensor) -> dict[str, Tensor]:
        """The row in a block, uint8 ``[size]``, or the stacks ``[n, ...]`` in n of them, ``[n, size]``."""
        typed = {dtype: blocks.view(dtype) for _, _, dtype in self.signature}
        found = {}
        for name, dtype, shape, strides, offset in self._places:
            whole = typed[dtype]
            lead, leading = whole.shape[:-1], whole.stride()[:-1]
            first = whole.storage_offset() + offset
            found[name] = whole.as_strided((*lead, *shape), (*leading, *strides), first)
        return found

    def _filled(self, row: Mapping[str, Tensor]) -> Tensor:
        block = torch.empty(self.size, dtype=torch.uint8)
        for name, place in self._views(block).items():
            place.copy_(row[name])
        return block


class GpuRows(RowLayout):
    """Rows of one signature on a GPU, where those that are kept together share memory.

    A launch for each row and tensor would take longer than training it. The memory of rows kept together is
    there until none of them is needed.

    Args:
        kind: signature of the rows.
        device: of the rows.
    """

    def __init__(self, kind: Signature, device: torch.device) -> None:
        super().__init__(kind)
        self._device = device

    def kept(self, rows: Sequence[Mapping[str, Tensor]]) -> list[Any]:
        """Copies of rows, each in the form that :meth:`read` takes."""
        if not self.signature:
            return [{} for _ in rows]
        stacks = [torch.stack([row[name] for row in rows]).to(self._device) for name, _, _ in self.signature]
        names = [name for name, _, _ in self.signature]
        return [
            dict(zip(names, tensors, strict=True))
            for tensors in zip(*(stack.unbind() for stack in stacks), strict=True)
        ]

    def read(self, row: Any) -> dict[str, Tensor]:
        """The named tensors of a row that was kept."""
        return dict(row)

    def stacked(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Rows that were kept as ``[n, ...]``."""
        return {
            name: torch.stack([row[name] for row in rows])
            if rows
            else torch.empty(0, *shape, dtype=dtype, device=self._device)
            for name, shape, dtype in self.signature
        }


def layout_on(kind: Signature, device: torch.device) -> RowLayout:
    """For rows of a signature on a device."""
    return RowLayout(kind) if device.type == "cpu" else GpuRows(kind, device)
