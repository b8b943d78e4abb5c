"""What the processes of test_ranks.py do: ``python ranks_at_work.py FOLDER`` writes what became of each.

One interpreter imports everything once and forks the ranks, which is quicker than to start each anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # functorch imports it for forward mode: once here instead of in every rank
from safetensors.torch import save_file

import mmfl_fast as mf
from mmfl_fast import algorithms, data
from mmfl_fast.federation import run_directory, simulation
from mmfl_fast.federation.checkpoints import state_tensors, with_state_tensors
from mmfl_fast.federation.config import option_names
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.ranks import joined
from mmfl_fast.federation.shared_disk_table import SharedDiskTable

MODEL = {
    "width": 8,
    "operator_rows": 4,
    "layers": 2,
    "filters": 2,
    "attention_width": 6,
    "heads": 2,
    "head_width": 8,
    "projection_width": 8,
    "batch_size": 8,
    "local_epochs": 1,
}
SMALL = {k: MODEL[k] for k in ("width", "operator_rows", "layers", "batch_size", "local_epochs")}


def options(method, **further):
    known = option_names(algorithms.get(method).Config)
    return {**{k: v for k, v in MODEL.items() if k in known}, **further}


def federation():
    """Two tasks, seven clients of unequal size, the last without a test row; rows that lack a modality."""
    generator = np.random.default_rng(0)

    def task(name, shapes, sizes, tested):
        owners = np.repeat(np.arange(len(sizes)), sizes)
        split = np.where((np.arange(len(owners)) % 4 == 0) & (owners < tested), "test", "train")
        labels = np.arange(len(owners)) % 3
        values = {
            m: generator.normal(size=(len(owners), *s)) + labels.reshape(-1, *[1] * len(s))
            for m, s in shapes.items()
        }
        return data.from_arrays(values, labels, owners, split=split, name=name)

    both = task("both", {"left": (3, 2), "right": (5,)}, (30, 12, 24, 40), 4)
    sound = task("sound", {"audio": (6,)}, (22, 9, 16), 2)
    return data.merge([data.with_missing(both, rate=0.5, level="sample", rule="independent"), sound])


def told(work):
    """What an error said, and of what kind it was."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def keep(folder, name, result):
    """Write a result, as this rank has it."""
    rank, state = os.environ.get("RANK", "0"), result.state
    # As tables in memory, also where the rows lie in files.
    tables = {name: table for name, table in vars(state).items() if isinstance(table, ParameterTable)}
    rows = {name: {row: table[row] for row in table} for name, table in tables.items()}
    state = replace(state, **{name: ParameterTable(own) for name, own in rows.items()})
    tensors = {n: t.contiguous().clone() for n, t in state_tensors(state).items()}
    save_file({**tensors, "per_client": result.final["per_client"]}, folder / f"{name}-{rank}.safetensors")
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in result.history]
    (folder / f"{name}-{rank}.json").write_text(json.dumps(lines))


def every_method(folder, methods):
    for method in methods:
        config = options(method, participation=0.9, evaluate_every=2)
        keep(folder, method, mf.run(federation(), method, rounds=2, config=config))


def other_paths(folder):
    """Stacks of clients, and several workers in each rank."""
    torch.set_num_threads(2)
    keep(folder, "threads", mf.run(federation(), "m3fed", rounds=2, config=SMALL))
    torch.set_num_threads(1)
    keep(folder, "stacks", mf.run(federation(), "fedavg", rounds=2, config={**SMALL, "chunk": 2}))


def on_disk(folder):
    """In temporary files; of ``local`` nothing else is exchanged."""
    for method in ("local", "per-fedavg", "fedmsplit"):
        config = options(method, participation=0.9, evaluate_every=2, client_state="disk")
        keep(folder, f"{method}-on-disk", mf.run(federation(), method, rounds=2, config=config))


def goes_on(folder, rounds, resume):
    config = {**SMALL, "checkpoint_every": 2, "participation": 0.8}
    return mf.run(federation(), "m3fed", rounds=rounds, out=folder / "goes-on", config=config, resume=resume)


class Sabotage:
    """Replaces a function in one rank for the length of a block."""

    def __init__(self, rank, place, name, function):
        self._here = int(os.environ["RANK"]) == rank
        self._place, self._name, self._function = place, name, function

    def __enter__(self):
        self._before = getattr(self._place, self._name)
        if self._here:
            setattr(self._place, self._name, self._function)

    def __exit__(self, *_):
        setattr(self._place, self._name, self._before)


def failures(folder, rank) -> dict[str, Any]:
    """What each rank is told of what goes wrong in one; all go on together afterwards."""

    def run(out=None, **config):
        return mf.run(federation(), "fedavg", rounds=3, out=out, config={**SMALL, **config})

    def raises(*_, **__):
        raise MemoryError("no room")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    original = simulation.train_clients

    def nan(clients, starts, *rest):
        starts = [{n: t * torch.nan for n, t in s.items()} for s in starts] if rest[1] == 1 else starts
        return original(clients, starts, *rest)

    def stops(*arguments):
        if arguments[3] == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    found = {
        "config": told(lambda: run(momentum=0.1 * rank)),
        "seed": told(lambda: mf.run(federation(), "fedavg", rounds=1, seed=rank)),
    }
    with Sabotage(1, simulation, "train_clients", raises):
        found["error"] = told(run)
    with Sabotage(1, simulation, "train_clients", nan):
        found["nan"] = told(run)
    with Sabotage(0, run_directory.RunDirectory, "append_metrics", full):
        found["disk"] = told(lambda: run(folder / "disk"))
    few = federation().tasks[1]
    found["crowd"] = told(
        lambda: mf.run(data.Federation("few", (few,)), "fedavg", rounds=1, config={"participation": 0.1})
    )
    found["out"] = told(lambda: run(folder / "disk"))
    aggregate = algorithms.get("fedavg").aggregate

    def drifts(*arguments):
        state = aggregate(*arguments)
        return with_state_tensors(
            state, {n: t * 1.5 if t.is_floating_point() else t for n, t in state_tensors(state).items()}
        )

    with Sabotage(1, algorithms.get("fedavg"), "aggregate", drifts):
        keep(folder, "drift", run())
    with Sabotage(1, simulation, "train_clients", stops):
        found["stopped"] = told(lambda: run(folder / "stopped"))
    return found


def two_ranks(folder, rank):
    with joined():
        every_method(folder, algorithms.names())
        other_paths(folder)
        on_disk(folder)
        goes_on(folder, 3, False)
        found = failures(folder, rank)
    (folder / f"failures-{rank}.json").write_text(json.dumps(found))


def four_ranks(folder, rank):
    with joined():
        every_method(folder, ("m3fed", "mfcpl"))
        keep(folder, "goes-on", goes_on(folder.parent / "two_ranks", 5, True))
        keep(folder, "resumed", survives(folder.parent / "dying_writers" / "run"))
    found = told(lambda: mf.run(data.Federation("few", federation().tasks[1:]), "fedavg", rounds=1))
    (folder / f"crowd-{rank}.json").write_text(json.dumps(found))


DYING = {**SMALL, "checkpoint_every": 2, "client_state": "disk"}


def dies(folder, rank):
    """A run of which a rank is killed in round 4; the last checkpoint is of round 2."""
    found = told(
        lambda: mf.run(
            federation(),
            "m3fed",
            rounds=6,
            out=folder / "run",
            config=DYING,
            described={"command": "mmfl-fast run mine.yaml"},
        )
    )
    (folder / f"told-{rank}.json").write_text(json.dumps(found))


def survives(run):
    return mf.run(federation(), "m3fed", rounds=6, out=run, config=DYING, resume=True)


def dying_ranks(folder, rank):
    """Rank 2 of three is killed while it trains."""
    original = simulation.train_clients

    def killed(*arguments):
        if arguments[3] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    with Sabotage(2, simulation, "train_clients", killed):
        dies(folder, rank)


def dying_writers(folder, rank):
    """Rank 1 of two is killed when it has written the state of its clients."""
    original, rounds = SharedDiskTable._write, []

    def killed(*arguments):
        original(*arguments)
        rounds.append(len(rounds))
        if len(rounds) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    with Sabotage(1, SharedDiskTable, "_write", killed):
        dies(folder, rank)


def hanging_ranks(folder, rank):
    """Rank 1 of two does not come back from its training."""
    os.environ["MMFL_PATIENCE"] = "0.1"
    (folder / f"process-{rank}").write_text(str(os.getpid()))
    with Sabotage(1, simulation, "train_clients", lambda *_: time.sleep(1000)):
        found = told(lambda: mf.run(federation(), "fedavg", rounds=1, config=SMALL))
    (folder / f"told-{rank}.json").write_text(json.dumps(found))
    os.kill(int((folder / "process-1").read_text()), signal.SIGKILL)


def one_process(folder, rank):
    every_method(folder, algorithms.names())
    other_paths(folder)
    keep(folder, "drift", mf.run(federation(), "fedavg", rounds=3, config=SMALL))
    config = {**SMALL, "participation": 0.8}
    keep(folder, "goes-on", mf.run(federation(), "m3fed", rounds=5, config=config))
    keep(folder, "resumed", survives(folder.parent / "dying_ranks" / "run"))
    keep(folder, "whole", mf.run(federation(), "m3fed", rounds=6, config=SMALL))


def start(folder: Path, work: Any, world: int) -> None:
    """Fork the ranks and wait for their end."""
    own = folder / work.__name__
    own.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def rank_of(rank: int) -> None:
        if world > 1:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
            os.environ.update(place, RANK=str(rank), WORLD_SIZE=str(world))
        torch.set_num_threads(1)
        work(own, rank)

    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_of, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    (own / "ended.json").write_text(json.dumps([process.exitcode for process in ranks]))


if __name__ == "__main__":
    for method in algorithms.names():
        algorithms.get(method)
    for work, world in (
        (two_ranks, 2),
        (dying_ranks, 3),
        (dying_writers, 2),
        (hanging_ranks, 2),
        (four_ranks, 4),
        (one_process, 1),
    ):
        start(Path(sys.argv[1]), work, world)
