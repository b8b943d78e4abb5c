"""Rows of a table in files that all ranks of a machine share."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmfl_fast.federation.disk_table import DiskTable
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.ranks import Ranks

# Tells machines of one name apart.
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class SharedDiskTable(DiskTable):
    """As :class:`~mmfl_fast.federation.disk_table.DiskTable`, in all ranks of a run.

    Each rank writes rows of its own, of the clients that it has trained, all know which slot is whose, and
    any reads any row. A system gives all processes of a machine the same view of a file, which network file
    systems do not do: ranks on other machines are refused.

    Args:
        table: the rows to begin with, the same in all ranks.
        folder: of the files; None takes temporary ones.
        device: where the tensors read are put.
        ranks: of the run.
        same_everywhere: all ranks replace the same rows, of which rank 0's values count; otherwise each has
            rows of its own.
    """

    def __init__(
        self,
        table: ParameterTable,
        folder: Path | None,
        device: torch.device,
        ranks: Ranks,
        same_everywhere: bool = False,
    ) -> None:
        super().__init__(table, folder, device)
        self._ranks = ranks
        self._same_everywhere = same_everywhere
        self._temporary = folder is None
        self._together = False

    def replace(self, rows: Mapping[int, Mapping[str, Tensor]]) -> DiskTable:
        """Write this rank's rows, and return the table that has those of all ranks, who call this together.

        Raises:
            KeyError, ValueError: as of the table of one process.
            ValueError: another rank has other files.
            OSError: the disk is full or not writable; names the file.
            RankError: another rank failed, or is gone.
        """
        if self._files and not self._together:
            self._open_together()
        # First of all: from here on a row may be written over that a checkpoint of this version would need.
        newer = self._next_version()
        # Nobody writes while another might still give up on the round.
        files = self._ranks.everywhere(lambda: newer._files_of(rows))

        def write() -> list[int]:
            if self._same_everywhere and not self._ranks.first:
                return []
            newer._write(rows, files)
            return list(rows)

        for written in self._ranks.exchange(write):
            newer._point_to(written)
        return newer

    def _open_together(self) -> None:
        """Open the files in all ranks, rank 0 first, which makes them."""
        ranks, files = self._ranks, list(dict.fromkeys(self._files))

        def make() -> str | None:
            name = tempfile.mkdtemp() if self._temporary else None
            place(name)
            for file in files:
                file.identity()
            return name

        def place(name: str | None) -> None:
            for number, file in enumerate(files):
                if name is not None:
                    file.path = Path(name) / f"rows-{number}.bin"

        def look() -> tuple[str, list[tuple[int, int]]] | None:
            if not ranks.first:
                place(name)
            try:
                for file in files:
                    file.require()
            except FileNotFoundError:
                return None
            return _machine(), [file.identity() for file in files]

        name = ranks.from_first(make)
        try:
            seen = ranks.exchange(look)
        finally:
            # Open files outlive their names.
            if name is not None and ranks.first:
                shutil.rmtree(name)
        other = next((rank for rank, theirs in enumerate(seen) if theirs != seen[0]), None)
        if other is not None:
            raise ValueError(
                "client_state='disk' is for processes of one machine, which share its files: rank "
                f"{other} does not see those of rank 0 ({files[0].path}); use client_state='memory'"
            )
        self._together = True


def _machine() -> str:
    return _BOOT.read_text() if _BOOT.exists() else platform.node()
