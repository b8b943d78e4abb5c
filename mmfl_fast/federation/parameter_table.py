"""Named tensors of many rows (clients, groups) whose shapes may differ from row to row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mmfl_fast.federation.persistent_map import PersistentMap
from mmfl_fast.federation.row_layout import RowLayout, Signature, layout_on, placed, signature

Row = Mapping[str, Tensor]
Table = TypeVar("Table", bound="ParameterTable")

# Beside the bytes of its tensors: what torch and Python keep of a row that has been replaced.
BYTES_PER_REPLACED_ROW = 700
# Of which some are moved at a time.
_ROWS = 1024


class ParameterTable:
    """An immutable mapping from a row number, 0 or more, to its named tensors, all on one device.

    Rows are kept as they were set up, once for all that have the same tensors, until they are replaced; then
    each has memory of its own. A newer version of the table shares with the older one all rows but those
    replaced, and nothing that a version refers to is written to again. So :meth:`replace` costs what the rows
    given cost, however many there are, and whoever holds an older version, or tensors read from it, keeps
    what he has and the memory of the rows replaced since.

    Args:
        rows: the rows to begin with.
    """

    def __init__(self, rows: Mapping[int, Row]) -> None:
        self._set_up(*_told_apart(rows))

    @staticmethod
    def of_kinds(starts: Sequence[Row], kinds: ArrayLike) -> ParameterTable:
        """The table whose row i begins as ``starts[kinds[i]]``: for many rows of which few differ.

        Args:
            starts: what rows can begin as.
            kinds: int ``[K]``, one for each row; -1 where the table has none.

        Raises:
            ValueError: a kind that there is no start of.
        """
        start_of = np.asarray(kinds).astype(np.int32)
        if start_of.max(initial=-1) >= len(starts):
            raise ValueError(f"kinds: expected numbers below {len(starts)}, got {start_of.max()}")
        table = object.__new__(ParameterTable)
        table._set_up(starts, start_of)
        return table

    def _set_up(self, starts: Sequence[Row], start_of: NDArray[np.int32]) -> None:
        device = _device_of(starts)
        layouts: dict[Signature, RowLayout] = {}
        # Rows that share a tensor still do so.
        own: dict[int, Tensor] = {}
        self._starts: list[dict[str, Tensor]] = []
        self._layouts: list[RowLayout] = []
        for start in starts:
            for tensor in start.values():
                if id(tensor) not in own:
                    own[id(tensor)] = placed(tensor)
            self._starts.append({name: own[id(tensor)] for name, tensor in start.items()})
            kind = signature(start)
            if kind not in layouts:
                layouts[kind] = layout_on(kind, device)
            self._layouts.append(layouts[kind])
        self._start_of = start_of
        self._count = int(np.count_nonzero(start_of >= 0))
        self._replaced: PersistentMap[Any] = PersistentMap(len(start_of))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        """Row numbers, ascending."""
        return iter(np.flatnonzero(self._start_of >= 0).tolist())

    def __contains__(self, row: object) -> bool:
        if not isinstance(row, (int, np.integer)):
            return False
        return bool(0 <= row < len(self._start_of) and self._start_of[row] >= 0)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Named tensors of one row, which others may share; do not write to them."""
        start = self._start(row)
        kept = self._replaced.get(row)
        return dict(self._starts[start]) if kept is None else self._layouts[start].read(kept)

    def get(self, row: int) -> dict[str, Tensor]:
        """The same, or nothing for a row that the table does not have."""
        if row not in self:
            return {}
        return self[row]

    @torch.no_grad()
    def replace(self, rows: Mapping[int, Row]) -> ParameterTable:
        """Return a table with some rows replaced by values of the same signature; this one stays as it is.

        Raises:
            KeyError: a row that the table does not have.
            ValueError: names, shapes or dtypes that differ from the row's.
        """
        members: dict[int, tuple[RowLayout, list[int]]] = {}
        for row, parameters in rows.items():
            layout = self._layout_for(row, parameters)
            members.setdefault(id(layout), (layout, []))[1].append(row)
        newer = self._another()
        newer._replaced = self._replaced.updated(
            {
                row: kept
                for layout, own in members.values()
                for row, kept in zip(own, layout.kept([rows[row] for row in own]), strict=True)
            }
        )
        return newer

    def changed_since(self, older: ParameterTable) -> list[int]:
        """Rows that have been replaced between an older version and this one; all of unrelated tables."""
        if older._starts is not self._starts:
            return list(self)
        return list(self._replaced.changed_since(older._replaced))

    def mapped(self, function: Callable[[dict[str, Tensor]], Row]) -> ParameterTable:
        """The table of what a function makes of every row; of rows with the same tensors it is asked once."""
        starts, kinds = self._as_set_up()
        return ParameterTable.of_kinds([function(dict(start)) for start in starts], kinds)

    def to(self, device: torch.device) -> ParameterTable:
        """The table on a device."""
        if device == _device_of(self._starts):
            return self
        moved = ParameterTable.of_kinds(
            [{n: t.to(device) for n, t in start.items()} for start in self._starts], self._start_of
        )
        rows = self._numbers_replaced()
        for first in range(0, len(rows), _ROWS):
            moved = moved.replace({row: self[row] for row in rows[first : first + _ROWS]})
        return moved

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores, stacked for all rows of one signature, by a flat name.

        ``"start/<signature>/<name>"`` is what rows were set up as, ``"row/<signature>"`` int64 ``[n]`` those
        that have been replaced since, and ``"replaced/<signature>/<name>"`` by what, ``[n, ...]``. All but
        the numbers of the rows are copies.
        """
        found: dict[str, Tensor] = {}
        replaced: dict[int, list[tuple[int, Any]]] = {}
        for row, kept in self._replaced.items():
            replaced.setdefault(id(self._layouts[self._start_of[row]]), []).append((row, kept))
        for number, (layout, starts) in enumerate(self._starts_by_layout()):
            for name, _, _ in layout.signature:
                found[f"start/{number}/{name}"] = torch.stack([self._starts[i][name] for i in starts])
            rows = replaced.get(id(layout), [])
            found[f"row/{number}"] = torch.tensor([row for row, _ in rows], dtype=torch.int64)
            stacks = layout.stacked([kept for _, kept in rows])
            found.update({f"replaced/{number}/{name}": stack for name, stack in stacks.items()})
        return found

    @torch.no_grad()
    def with_tensors(self, tensors: Mapping[str, Tensor]) -> ParameterTable:
        """Return a table of this layout with the values of ``tensors()`` of another one."""
        starts: dict[int, Row] = {}
        for number, (layout, own) in enumerate(self._starts_by_layout()):
            for place, start in enumerate(own):
                # A copy: a slice of the stack would keep all of it.
                starts[start] = {
                    name: tensors[f"start/{number}/{name}"][place].clone() for name, _, _ in layout.signature
                }
        table = ParameterTable.of_kinds([starts[i] for i in range(len(self._starts))], self._start_of)
        for number, (layout, _) in enumerate(self._starts_by_layout()):
            stacks = {name: tensors[f"replaced/{number}/{name}"] for name, _, _ in layout.signature}
            rows = tensors[f"row/{number}"].tolist()
            for first in range(0, len(rows), _ROWS):
                some = enumerate(rows[first : first + _ROWS], start=first)
                table = table.replace(
                    {row: {name: stack[place] for name, stack in stacks.items()} for place, row in some}
                )
        return table

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

    def _start(self, row: int) -> int:
        if row not in self:
            raise KeyError(row)
        return int(self._start_of[row])

    def _layout_for(self, row: int, parameters: Row) -> RowLayout:
        """Of a row, for new values that fit into it."""
        layout = self._layouts[self._start(row)]
        if signature(parameters) != layout.signature:
            raise ValueError(f"row {row}: expected {layout.signature}, got {signature(parameters)}")
        return layout

    def _another(self: Table) -> Table:
        newer = object.__new__(type(self))
        newer.__dict__.update(self.__dict__)
        return newer

    def _as_set_up(self) -> tuple[list[dict[str, Tensor]], NDArray[np.int32]]:
        """Starts of all rows, those replaced included, and which is whose."""
        starts, start_of = list(self._starts), self._start_of.copy()
        for row in self._numbers_replaced():
            start_of[row] = len(starts)
            starts.append(self[row])
        return starts, start_of

    def _numbers_replaced(self) -> list[int]:
        return [row for row, _ in self._replaced.items()]

    def _starts_by_layout(self) -> list[tuple[RowLayout, list[int]]]:
        found: dict[int, tuple[RowLayout, list[int]]] = {}
        for start, layout in enumerate(self._layouts):
            found.setdefault(id(layout), (layout, []))[1].append(start)
        return list(found.values())


def _told_apart(rows: Mapping[int, Row]) -> tuple[list[Row], NDArray[np.int32]]:
    """The rows that differ, and which one each is."""
    start_of = np.full(max(rows, default=-1) + 1, -1, dtype=np.int32)
    starts: list[Row] = []
    of_tensors: dict[tuple[object, ...], int] = {}
    # An identity is one as long as what it is of is there.
    of_mapping: dict[int, tuple[int, Row]] = {}
    for row, parameters in rows.items():
        if row < 0:
            raise ValueError(f"rows are numbered from 0, got row {row}")
        known = of_mapping.get(id(parameters))
        if known is None:
            key = (*parameters, *map(id, parameters.values()))
            start = of_tensors.setdefault(key, len(starts))
            if start == len(starts):
                starts.append(parameters)
            known = of_mapping[id(parameters)] = start, parameters
        start_of[row] = known[0]
    return starts, start_of


def _device_of(rows: Iterable[Row]) -> torch.device:
    return next((t.device for row in rows for t in row.values()), torch.device("cpu"))
