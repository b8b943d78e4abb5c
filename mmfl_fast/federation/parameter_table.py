"""Named tensors of many rows (clients, groups) whose shapes may differ from row to row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

# Bytes of a cache line, at which torch begins a tensor.
_LINE = 64

Signature = tuple[tuple[str, torch.Size, torch.dtype], ...]


def signature(parameters: Mapping[str, Tensor]) -> Signature:
    """Names, shapes and dtypes; rows of one signature can be stacked."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in parameters.items())


class ParameterTable:
    """An immutable mapping from a row number to its named tensors.

    Rows of one signature are stored stacked, ``[K, ...]`` per name, and read back as views. They are stacked
    when the stacks are first needed: rows that share their tensors take no memory until one is replaced.
    """

    def __init__(self, rows: Mapping[int, Mapping[str, Tensor]]) -> None:
        self._rows: Mapping[int, Mapping[str, Tensor]] | None = _contiguous(rows)
        self._place: dict[int, tuple[int, int]] = {}
        self._stacks: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._place if self._rows is None else self._rows)

    def __iter__(self) -> Iterator[int]:
        """Row numbers."""
        return iter(self._place if self._rows is None else self._rows)

    def __contains__(self, row: object) -> bool:
        return row in (self._place if self._rows is None else self._rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Named tensors of one row, which others may share; do not write to them."""
        if self._rows is not None:
            return dict(self._rows[row])
        stack, position = self._place[row]
        return {name: tensor[position] for name, tensor in self._stacks[stack].items()}

    def get(self, row: int) -> dict[str, Tensor]:
        """The same, or nothing for a row that the table does not have."""
        if row not in self:
            return {}
        return self[row]

    def replace(self, rows: Mapping[int, Mapping[str, Tensor]]) -> ParameterTable:
        """Return a table with some rows replaced by values of the same signature; this one stays as it is.

        Raises:
            KeyError: a row that the table does not have.
            ValueError: names, shapes or dtypes that differ from the row's.
        """
        table = self._with_stacks([dict(stack) for stack in self._stacked()])
        touched: set[int] = set()
        for row, parameters in rows.items():
            stack, position = self._place[row]
            if signature(parameters) != signature(self[row]):
                raise ValueError(f"row {row}: expected {signature(self[row])}, got {signature(parameters)}")
            if stack not in touched:
                table._stacks[stack] = {name: _placed(t) for name, t in self._stacks[stack].items()}
                touched.add(stack)
            for name, tensor in parameters.items():
                table._stacks[stack][name][position].copy_(tensor)
        return table

    def tensors(self) -> dict[str, Tensor]:
        """The stacks by a flat name, ``"<stack>/<name>"``; what a checkpoint stores."""
        return {f"{i}/{name}": t for i, stack in enumerate(self._stacked()) for name, t in stack.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> ParameterTable:
        """Return a table of this layout with the values of ``tensors()`` of another one."""
        return self._with_stacks(
            [
                {name: _placed(tensors[f"{i}/{name}"]) for name in stack}
                for i, stack in enumerate(self._stacked())
            ]
        )

    @property
    def newest(self) -> bool:
        """Whether the rows of this version are still there."""
        return True

    def read_ahead(self, rows: Iterable[int]) -> None:
        """Say which rows will be read soon."""

    def before_checkpoint(self) -> None:
        """Make sure that what :meth:`tensors` refers to outlives the process."""

    def after_checkpoint(self) -> None:
        """Keep what the checkpoint just written refers to."""

    def _with_stacks(self, stacks: list[dict[str, Tensor]]) -> ParameterTable:
        table = ParameterTable({})
        table._rows, table._place, table._stacks = None, self._place, stacks
        return table

    @torch.no_grad()
    def _stacked(self) -> list[dict[str, Tensor]]:
        if self._rows is not None:
            by_signature: dict[Signature, list[int]] = {}
            for row, parameters in self._rows.items():
                by_signature.setdefault(signature(parameters), []).append(row)
            for key, members in by_signature.items():
                self._place.update({row: (len(self._stacks), i) for i, row in enumerate(members)})
                stack = {
                    name: _room(len(members), shape, dtype, self._rows[members[0]][name].device)
                    for name, shape, dtype in key
                }
                for name, tensor in stack.items():
                    torch.stack([self._rows[r][name] for r in members], out=tensor)
                self._stacks.append(stack)
            self._rows = None
        return self._stacks


def _room(count: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[count, *shape]``, not initialised, whose rows begin where a tensor of its own would.

    On where a tensor lies the rounding of a product can depend.
    """
    size = shape.numel()
    pitch = -(-size * dtype.itemsize // _LINE) * _LINE // dtype.itemsize
    flat = torch.empty(count, pitch, dtype=dtype, device=device)
    return flat[:, :size].view(count, *shape)


def _placed(stack: Tensor) -> Tensor:
    return _room(len(stack), stack.shape[1:], stack.dtype, stack.device).copy_(stack)


def _contiguous(rows: Mapping[int, Mapping[str, Tensor]]) -> dict[int, Mapping[str, Tensor]]:
    """The rows as they are once stacked: on strides the rounding of a product can depend."""
    packed: dict[int, Tensor] = {}
    made: dict[int, Mapping[str, Tensor]] = {}
    for row, parameters in rows.items():
        if not all(t.is_contiguous() for t in parameters.values()):
            # Rows that share a tensor still do so.
            parameters = {
                n: packed[id(t)] if id(t) in packed else packed.setdefault(id(t), t.contiguous())
                for n, t in parameters.items()
            }
        made[row] = parameters
    return made
