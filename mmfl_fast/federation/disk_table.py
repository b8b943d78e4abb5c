"""Rows of a table in a file: the personal state of clients that are seldom there."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfl_fast.federation.durable import sync
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.row_layout import Signature

# Two checkpoints are kept, and neither may lose what it refers to while a third value is written.
SLOTS = 3
# In memory: where a row began, and its slot now and in two checkpoints.
BYTES_PER_ROW = 7
# Buffers that POSIX lets one call take.
_MOST_BUFFERS = 1024


class DiskTable(ParameterTable):
    """A table whose rows lie in files once they have been replaced.

    In memory are the rows as the algorithm set them up, once for all rows of the same tensors, and a few
    bytes per row. Every row has three slots in a sparse file. A new value goes to one that neither of the
    last two checkpoints refers to, so a process can die at any moment: a checkpoint is the number of each
    row's slot.

    Unlike other tables this one has a single newest version; an older one can no longer be read.

    Args:
        table: the rows to begin with.
        folder: of the files; made when it is first needed. None takes temporary files, which end with the
            table.
        device: where the tensors read are put.
    """

    def __init__(
        self, table: ParameterTable, folder: Path | None, device: torch.device | str = "cpu"
    ) -> None:
        device = torch.device(device)
        starts, start_of = table._as_set_up()
        self._set_up([{n: t.to(device) for n, t in start.items()} for start in starts], start_of)
        files: dict[Signature, _RowFile] = {}
        self._files: list[_RowFile] = []
        for layout in self._layouts:
            kind = layout.signature
            if kind not in files:
                path = None if folder is None else folder / f"rows-{len(files)}.bin"
                files[kind] = _RowFile(kind, path, device)
            self._files.append(files[kind])
        self._slots = _Slots(len(start_of))
        self._version = self._slots.version

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Named tensors of one row; do not write to them."""
        start = self._start(row)
        slot = int(self._slots.current[row])
        return self._files[start].read(row, slot) if slot else dict(self._starts[start])

    def replace(self, rows: Mapping[int, Mapping[str, Tensor]]) -> DiskTable:
        """Write the rows, and return the table that has them; this one can no longer be used.

        Raises:
            KeyError: a row that the table does not have.
            ValueError: names, shapes or dtypes that differ from the row's.
            OSError: the disk is full or not writable; names the file.
        """
        files = self._files_of(rows)
        newer = self._next_version()
        newer._write(rows, files)
        newer._point_to(rows)
        return newer

    def tensors(self) -> dict[str, Tensor]:
        """The slot of every row, now and in the checkpoint before, uint8; 0 for a row as it was set up."""
        self._refuse_stale()
        return {
            "slot": torch.from_numpy(self._slots.current.copy()),
            "before": torch.from_numpy(self._slots.kept.copy()),
        }

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> DiskTable:
        """Return the table of a checkpoint, whose rows are still in the files.

        Raises:
            ValueError: the checkpoint is of other rows.
            FileNotFoundError: the file of a row is gone.
        """
        slot, before = (tensors[name].numpy().copy() for name in ("slot", "before"))
        if len(slot) != len(self._start_of):
            raise ValueError(f"expected slots of {len(self._start_of)} rows, got {len(slot)}")
        used = {self._files[start] for start in np.unique(self._start_of[slot > 0]).tolist()}
        for file in used:
            file.require()
        self._slots.current, self._slots.kept, self._slots.kept_before = slot, slot.copy(), before
        return self._next_version()

    def to(self, device: torch.device) -> DiskTable:
        """The table as it is: it puts what it reads on the device that it was made for."""
        del device
        return self

    def read_ahead(self, rows: Iterable[int]) -> None:
        """Ask the system to read rows that will be needed soon, and do not wait for it."""
        for row in rows:
            slot = int(self._slots.current[row]) if row in self else 0
            if slot:
                self._files[self._start(row)].read_ahead(row, slot)

    def before_checkpoint(self) -> None:
        """Wait until all that :meth:`tensors` refers to is on disk."""
        for file in set(self._files):
            file.sync()

    def after_checkpoint(self) -> None:
        """Keep what the new checkpoint refers to; the last but one may be overwritten."""
        self._slots.kept_before, self._slots.kept = self._slots.kept, self._slots.current.copy()

    @property
    def newest(self) -> bool:
        """Whether the files still hold this version."""
        return self._version == self._slots.version

    def _files_of(self, rows: Mapping[int, Mapping[str, Tensor]]) -> list[_RowFile]:
        """Where rows are to be written, once it is known that they can be."""
        for row, parameters in rows.items():
            self._layout_for(row, parameters)
        return [self._files[self._start(row)] for row in rows]

    def _write(self, rows: Mapping[int, Mapping[str, Tensor]], files: Iterable[_RowFile]) -> None:
        for (row, parameters), file in zip(rows.items(), files, strict=True):
            file.write(row, self._slots.free(row), parameters)

    def _point_to(self, rows: Iterable[int]) -> None:
        """From now on what has just been written is these rows."""
        for row in rows:
            self._slots.current[row] = self._slots.free(row)

    def _start(self, row: int) -> int:
        self._refuse_stale()
        return super()._start(row)

    def _numbers_replaced(self) -> list[int]:
        self._refuse_stale()
        rows: list[int] = np.flatnonzero(self._slots.current).tolist()
        return rows

    def _next_version(self) -> DiskTable:
        newer = self._another()
        self._slots.version += 1
        newer._version = self._slots.version
        return newer

    def _refuse_stale(self) -> None:
        if not self.newest:
            raise RuntimeError("this table on disk has been replaced by a newer one: read that")


class _Slots:
    """Which slot holds each row, from 1, or 0 for none: now, and in the last two checkpoints."""

    def __init__(self, count: int) -> None:
        self.version = 0
        self.current: NDArray[np.uint8] = np.zeros(count, dtype=np.uint8)
        self.kept: NDArray[np.uint8] = np.zeros(count, dtype=np.uint8)
        self.kept_before: NDArray[np.uint8] = np.zeros(count, dtype=np.uint8)

    def free(self, row: int) -> int:
        taken = (self.kept[row], self.kept_before[row])
        return next(slot for slot in range(1, SLOTS + 1) if slot not in taken)


class _RowFile:
    """The file of all rows of one signature."""

    def __init__(self, kind: Signature, path: Path | None, device: torch.device) -> None:
        self.signature = kind
        self.path = path
        self._device = device
        self._size = sum(shape.numel() * dtype.itemsize for _, shape, dtype in kind)

    @cached_property
    def _file(self) -> int:
        if self.path is None:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            sync(self.path.parent)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def identity(self) -> tuple[int, int]:
        """What the file is on this machine, whatever its name."""
        status = os.fstat(self._file)
        return status.st_dev, status.st_ino

    def require(self) -> None:
        if self.path is not None and not self.path.exists():
            raise FileNotFoundError(f"{self.path} is gone, with the personal state of clients")
        _ = self._file

    def read(self, row: int, slot: int) -> dict[str, Tensor]:
        # Memory of their own: on where a tensor lies the rounding of a product can depend.
        tensors = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in self.signature}
        self._transfer(os.preadv, list(map(_buffer, tensors.values())), row, slot)
        if self._device.type == "cpu":
            return tensors
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def write(self, row: int, slot: int, parameters: Mapping[str, Tensor]) -> None:
        buffers = [_buffer(tensor.detach().cpu().contiguous()) for tensor in parameters.values()]
        self._transfer(os.pwritev, buffers, row, slot)

    def read_ahead(self, row: int, slot: int) -> None:
        # Not on every system.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, self._place(row, slot), self._size, os.POSIX_FADV_WILLNEED)

    def sync(self) -> None:
        # Nothing has been written to a file that is not open.
        if "_file" in self.__dict__:
            os.fsync(self._file)

    def _place(self, row: int, slot: int) -> int:
        return (row * SLOTS + slot - 1) * self._size

    def _transfer(
        self,
        call: Callable[[int, list[memoryview], int], int],
        buffers: list[memoryview],
        row: int,
        slot: int,
    ) -> None:
        place = self._place(row, slot)
        try:
            left = [buffer for buffer in buffers if buffer.nbytes]
            while left:
                # Less than was asked for if the disk is nearly full: the next call says so.
                done = call(self._file, left[:_MOST_BUFFERS], place)
                if not done:
                    raise OSError(errno.EIO, f"no bytes at {place}")
                place += done
                while left and done >= left[0].nbytes:
                    done -= left.pop(0).nbytes
                if done:
                    left[0] = left[0].cast("B")[done:]
        except OSError as error:
            where = "a temporary file" if self.path is None else str(self.path)
            raise OSError(error.errno, f"{error.strerror}: personal state of row {row}", where) from error


def _buffer(tensor: Tensor) -> memoryview:
    # NumPy has no bfloat16.
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().data
