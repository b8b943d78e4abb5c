"""Rounds of a population of which few take part: what ``mmfl-fast bench population`` runs.

Every client keeps a model of its own (``per-fedavg``). Rows lie in files, personal state on disk, and each
population has a fresh process whose memory is counted. The processes take their rounds in turns, so that
other work on the machine slows all of them alike. Time is that of the processor in the thread that does the
work.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from .machine import facts

_ROWS, _WIDTH, _CLASSES = 10, 16, 4
_TESTED = 100
_MODEL = {"width": 32, "operator_rows": 16, "layers": 1, "batch_size": 8, "local_epochs": 1}
# The first records the native steps.
_WARM_UP = 1


@dataclass(frozen=True)
class Counted:
    """One population.

    Attributes:
        clients: registered.
        sampled: in a round.
        set_up: seconds until the first round is done, by the clock.
        round: seconds of a round and an evaluation, median, of processor time.
        quartiles: between which half of the rounds are.
        resident: peak bytes of the process in memory, what it maps of files included.
        on_disk: bytes that the run directory takes.
        personal: bytes of the personal state of all clients, were it in memory.
    """

    clients: int
    sampled: int
    set_up: float
    round: float
    quartiles: tuple[float, float]
    resident: int
    on_disk: int
    personal: int


def run(populations: Sequence[int], sampled: int, rounds: int, gib: float, json_file: Path | None) -> None:
    """Count every population in a process whose data may not grow beyond ``gib``, and print a table."""
    turns = [_begun(clients, sampled, rounds, gib) for clients in populations]
    for _ in range(rounds):
        for turn in turns:
            turn.send("your turn")
            _answer(turn)
    found: list[Counted] = []
    for turn in turns:
        turn.send("the end")
        found.append(_answer(turn))
    table = Table("clients", "set up", "a round", "ratio", "memory", "on disk", "personal state", box=None)
    for one in found:
        table.add_row(
            f"{one.clients:,}",
            f"{one.set_up:.1f} s",
            f"{one.round:.3f} s",
            f"{one.round / found[0].round:.2f}",
            f"{one.resident / 2**30:.2f} GiB",
            f"{one.on_disk / 2**20:.0f} MiB",
            f"{one.personal / 2**30:.2f} GiB",
        )
    Console().print(table)
    if json_file is not None:
        told = {"machine": facts("cpu", None), "limit_gib": gib, "populations": [asdict(c) for c in found]}
        json_file.write_text(json.dumps(told, indent=1) + "\n")


def _begun(*arguments: Any) -> Connection:
    """Start a process, wait until it has set up and warmed up, and return the connection to it."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    context.Process(target=_count, args=(*arguments, theirs), daemon=True).start()
    theirs.close()
    _answer(ours)
    return ours


def _answer(turn: Connection) -> Any:
    try:
        return turn.recv()
    except EOFError:
        raise RuntimeError("a population's process ended before its time; what it said is above") from None


def _count(clients: int, sampled: int, rounds: int, gib: float, turn: Connection) -> None:
    import mmfl_fast as mf
    from mmfl_fast.algorithms.per_fedavg import PerFedAvg

    limit = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    set_up, seconds, start = 0.0, [], 0.0

    class InTurns(PerFedAvg):
        """Waits at the end of every round, before it is written and tested."""

        def metrics(self, state: Any) -> dict[str, Any]:
            nonlocal set_up, start
            seconds.append(time.thread_time() - start)
            set_up = set_up or time.perf_counter() - began
            turn.send("done")
            turn.recv()
            start = time.thread_time()
            return super().metrics(state)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "data", clients)
        began = time.perf_counter()
        result = mf.run(
            mf.data.load_npz(folder / "data"),
            InTurns,
            rounds=_WARM_UP + rounds,
            out=folder / "run",
            progress=False,
            config={
                **_MODEL,
                "participation": sampled / clients,
                "client_state": "disk",
                "evaluate_clients": _TESTED,
                "checkpoint_every": 5,
            },
        )
        on_disk = sum(512 * f.stat().st_blocks for f in (folder / "run").rglob("*"))
        own = sum(t.nbytes for t in result.state.personal[0].values())
    counted = seconds[_WARM_UP:]
    low, high = np.quantile(counted, (0.25, 0.75)).tolist()
    # In KiB.
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    turn.send(Counted(clients, sampled, set_up, median(counted), (low, high), peak, on_disk, clients * own))


def _write(folder: Path, clients: int) -> None:
    """Rows of all clients, made in parts."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), clients * _ROWS
    np.save(folder / "labels.npy", rng.integers(_CLASSES, size=rows))
    np.save(folder / "clients.npy", np.repeat(np.arange(clients), _ROWS))
    inputs = np.lib.format.open_memmap(
        folder / "modality:x.npy", mode="w+", dtype=np.float32, shape=(rows, _WIDTH)
    )
    for first in range(0, rows, 1 << 20):
        part = inputs[first : first + (1 << 20)]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    inputs.flush()
