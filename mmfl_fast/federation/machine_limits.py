"""What this process may still take of the machine."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


class Room(NamedTuple):
    """Free bytes, and what bounds them."""

    free: int
    bound: str


def free_memory(device: torch.device) -> Room:
    """The least of what machine, container and limits of the shell leave; on a GPU what it has.

    Memory that torch keeps there for later counts as free.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Room(torch.cuda.mem_get_info(device)[0] + kept, str(device))
    rooms = [_of_machine(), *_of_container(), *_of_shell()]
    return min(rooms, key=lambda room: room.free)


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _of_machine() -> Room:
    for line in (_PROC / "meminfo").read_text().splitlines() if (_PROC / "meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return Room(1024 * int(line.split()[1]), "the machine")
    return Room(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine")


def _of_container() -> list[Room]:
    rooms = []
    one, two = _CGROUPS / "memory", _CGROUPS
    for limit, used, stat, kept in (
        (two / "memory.max", two / "memory.current", two / "memory.stat", "inactive_file"),
        (
            one / "memory.limit_in_bytes",
            one / "memory.usage_in_bytes",
            one / "memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            most, taken = limit.read_text().strip(), int(used.read_text())
            # What the system keeps of files it gives back when it is asked.
            cached = dict(line.split() for line in stat.read_text().splitlines()).get(kept, "0")
        except OSError:
            continue
        if most.isdecimal():
            rooms.append(Room(int(most) - taken + int(cached), "the container"))
    return rooms


def _of_shell() -> list[Room]:
    rooms = []
    for kind, line in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        most = resource.getrlimit(kind)[0]
        if most == resource.RLIM_INFINITY or not (_PROC / "self/status").exists():
            continue
        status = (_PROC / "self/status").read_text().splitlines()
        taken = next((1024 * int(entry.split()[1]) for entry in status if entry.startswith(line)), 0)
        rooms.append(Room(most - taken, "ulimit"))
    return rooms
