"""Named tensors from every rank to every rank, in one message for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mmfl_fast.federation.ranks import Ranks
from mmfl_fast.federation.row_layout import Signature, pitch, signature

Plain = TypeVar("Plain")


def exchange_tensors(
    ranks: Ranks,
    work: Callable[[], tuple[Plain, Sequence[Mapping[str, Tensor]]]],
    device: torch.device,
) -> list[tuple[Plain, list[dict[str, Tensor]]]]:
    """Do this rank's work, and return what it gave in each rank.

    Args:
        ranks: of the run, several.
        work: gives plain data and rows of named tensors. It may fail.
        device: where the tensors of all ranks are to be.

    Returns:
        Plain data and rows of every rank, in the order of ranks. Tensors have the same bits, strides and
        alignment in all ranks, so that what is computed from them is the same.

    Raises:
        Exception: of ``work``, in the rank where it failed.
        RankError: in the other ranks; or a rank is gone.
    """
    packed: list[Tensor] = []

    def pack() -> tuple[Plain, Layout]:
        plain, rows = work()
        layout = Layout.of(rows)
        packed.append(layout.pack(rows, device))
        return plain, layout

    reports = ranks.exchange(pack)
    buffers = ranks.swap(packed * ranks.world, [layout.size for _, layout in reports])
    return [(plain, layout.unpack(b)) for (plain, layout), b in zip(reports, buffers, strict=True)]


@dataclass(frozen=True)
class Layout:
    """Where the tensors of many rows lie in one buffer; those of one name side by side.

    Attributes:
        rows: how many.
        groups: rows of one signature, by position.
    """

    rows: int
    groups: tuple[tuple[Signature, tuple[int, ...]], ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Tensor]]) -> Layout:
        """The layout for some rows."""
        return cls.of_signatures([signature(row) for row in rows])

    @classmethod
    def of_signatures(cls, signatures: Sequence[Signature]) -> Layout:
        """The layout for rows of these signatures."""
        groups: dict[Signature, list[int]] = {}
        for position, row in enumerate(signatures):
            groups.setdefault(row, []).append(position)
        return cls(len(signatures), tuple((s, tuple(positions)) for s, positions in groups.items()))

    def signatures(self) -> list[Signature]:
        """The signature of each row."""
        found = {position: s for s, positions in self.groups for position in positions}
        return [found[position] for position in range(self.rows)]

    def part(self, number: int, parts: int) -> Layout:
        """The layout of a part of the rows, see :func:`part_of_row`."""
        return Layout(self.rows, tuple((_part(s, number, parts), positions) for s, positions in self.groups))

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return sum(len(p) * pitch(shape, dtype) for s, p in self.groups for _, shape, dtype in s)

    def pack(self, rows: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensor:
        """Copy the rows of this layout into a buffer, uint8 ``[size]``."""
        buffer = torch.empty(self.size, dtype=torch.uint8, device=device)
        for name, positions, places in self._places(buffer):
            for position, place in zip(positions, places, strict=True):
                place.copy_(rows[position][name])
        return buffer

    def unpack(self, buffer: Tensor) -> list[dict[str, Tensor]]:
        """The rows in a buffer, as views."""
        rows: list[dict[str, Tensor]] = [{} for _ in range(self.rows)]
        for name, positions, places in self._places(buffer):
            for position, place in zip(positions, places, strict=True):
                rows[position][name] = place
        return rows

    def _places(self, buffer: Tensor) -> Iterator[tuple[str, tuple[int, ...], tuple[Tensor, ...]]]:
        begin = 0
        for parameters, positions in self.groups:
            for name, shape, dtype in parameters:
                step = pitch(shape, dtype)
                end = begin + step * len(positions)
                whole = buffer[begin:end].view(dtype)
                strides = (step // dtype.itemsize, *torch.empty(shape, device="meta").stride())
                stacked = whole.as_strided((len(positions), *shape), strides)
                yield name, positions, stacked.unbind()
                begin = end


def part_of_row(row: Mapping[str, Tensor], number: int, parts: int) -> dict[str, Tensor]:
    """One of nearly equal parts of every tensor of a row: one-dimensional, a view where that is possible."""
    found = {}
    for name, tensor in row.items():
        begin, end = _bounds(tensor.numel(), number, parts)
        found[name] = tensor.reshape(-1)[begin:end]
    return found


def _part(whole: Signature, number: int, parts: int) -> Signature:
    found = []
    for name, shape, dtype in whole:
        begin, end = _bounds(shape.numel(), number, parts)
        found.append((name, torch.Size([end - begin]), dtype))
    return tuple(found)


def _bounds(count: int, number: int, parts: int) -> tuple[int, int]:
    return count * number // parts, count * (number + 1) // parts
