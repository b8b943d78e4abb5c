"""Whole rounds of M3Fed with many clients: what ``mmfl-fast bench rounds`` runs.

Each client makes both passes over its rows in batches of 64; the server compares all updates by angle, in
sketches and with landmarks, clusters them, averages inside clusters and mixes the operators. Beside it stands
the engine with one client after the other on torch's own operators: a sequential loop on the same device.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import mmfl_fast as mf
from mmfl_fast import algorithms, data
from mmfl_fast.data import Federation
from mmfl_fast.federation import Context, Purpose
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.checkpoints import state_tensors
from mmfl_fast.federation.streams import torch_generator

from .machine import Rates, facts, gpu_rates
from .registry import Work

_FEATURES, _CLASSES, _BATCH = 64, 10, 64
_COMPARED = 8
_TOLERANCE = 1e-4
_CONFIG = {"batch_size": _BATCH, "local_epochs": 1, "sketch": 4096, "evaluate_clients": 1}
# Reads and writes of a step: the parameter that moves and its velocity.
_ACCESSES = 4
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Rounds:
    """Medians over rounds.

    Attributes:
        clients: seconds of local training, with what the engine does around it.
        server: seconds of the aggregation.
    """

    clients: float
    server: float


def run(device: str, clients: int, rows: int, sequential: int, rounds: int, json_file: Path | None) -> bool:
    """Check, measure, print and write.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        clients: in a round.
        rows: of each.
        sequential: clients of the round in which one follows the other.
        rounds: that count, after one to warm up.
        json_file: where to write the numbers; None for nowhere.

    Returns:
        Whether stacks and single clients end at the same parameters; if not, nothing is timed.
    """
    rates = gpu_rates() if device == "cuda" else None
    told = facts(device, rates)
    error = _error(device)
    if not error <= _TOLERANCE:
        print(
            f"not timed: clients in a stack end {error:.1e} from where they end alone, above {_TOLERANCE:.0e}"
        )
        return False
    whole = _measured(_federation(clients, rows), device, rounds, landmarks=min(256, clients - 1))
    alone = _measured(
        _federation(sequential, rows),
        device,
        rounds,
        landmarks=min(256, sequential - 1),
        chunk=1,
        native_steps="off",
    )
    work = _work(clients, rows)
    line = {
        "clients": clients,
        "rows": rows,
        "error": error,
        "seconds": {"clients": whole.clients, "server": whole.server},
        "server_share": whole.server / (whole.clients + whole.server),
        "microseconds_per_client": 1e6 * whole.clients / clients,
        "sequential_microseconds_per_client": 1e6 * alone.clients / sequential,
        "times_faster_than_sequential": alone.clients / sequential / (whole.clients / clients),
        "gigabytes": work.moved / 1e9,
        "teraflop": work.flops / 1e12,
        "share_of_the_floor": _share(rates, work, whole),
    }
    _print(line, told)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": told, "round": line}, indent=2) + "\n")
    return True


def _federation(clients: int, rows: int) -> Federation:
    """Noise; the first client has a row to test, so that an evaluation has something to do."""
    generator = np.random.default_rng(0)
    owners = np.concatenate([np.repeat(np.arange(clients), rows), [0]])
    return data.from_arrays(
        {"x": generator.standard_normal((len(owners), _FEATURES), dtype=np.float32)},
        np.arange(len(owners)) % _CLASSES,
        owners,
        split=np.where(np.arange(len(owners)) < clients * rows, "train", "test"),
        name="bench",
    )


def _error(device: str) -> float:
    """Largest difference of any parameter between clients in one stack and the same one after the other."""
    federation = _federation(_COMPARED, 3 * _BATCH + 7)
    ends = [
        state_tensors(
            mf.run(
                federation,
                "m3fed",
                rounds=1,
                progress=False,
                config={**_CONFIG, "device": device, "landmarks": 4, "chunk": chunk, "native_steps": "off"},
            ).state
        )
        for chunk in (_COMPARED, 1)
    ]
    differences = [
        (stacked.cpu().double() - ends[1][name].cpu().double()).abs().max()
        for name, stacked in ends[0].items()
        if name.startswith(("shared", "personal/replaced"))
    ]
    # Of torch, whose maximum keeps a NaN.
    return float(torch.stack(differences).max())


def _measured(federation: Federation, device: str, rounds: int, **config: Any) -> Rounds:
    result = mf.run(
        federation,
        "m3fed",
        rounds=rounds + 1,
        progress=False,
        config={**_CONFIG, "device": device, **config},
    )
    seconds = [line["seconds"] for line in result.history[1:]]
    return Rounds(median(s["clients"] for s in seconds), median(s["server"] for s in seconds))


def _work(clients: int, rows: int) -> Work:
    """What training cannot do without: rows read once, what moves read and written with its velocity."""
    algorithm = algorithms.get("m3fed")(algorithms.get("m3fed").Config(batch_size=_BATCH, local_epochs=1))
    federation = _federation(2, rows)
    state = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))
    client = federation.clients[1]
    params = algorithm.broadcast(state, client)
    steps, flops, moved = -(-rows // _BATCH), 0, 0
    batch = gather(client.task, client.train_rows[:_BATCH])
    for phase in algorithm.client_phases():
        names = phase.moving(params)
        leaves = {name: params[name].clone().requires_grad_() for name in names}
        with FlopCounterMode(display=False) as counter:
            loss = phase.loss({**params, **leaves}, batch, Context(params, 0))
            torch.autograd.grad(loss, list(leaves.values()))
        flops += steps * counter.get_total_flops()
        moving = sum(params[name].numel() for name in names)
        read = sum(t.numel() for t in params.values()) - moving
        moved += _FLOAT_BYTES * (steps * (_ACCESSES * moving + read) + rows * _FEATURES)
    return Work(clients * moved, clients * flops)


def _share(rates: Rates | None, work: Work, whole: Rounds) -> float | None:
    return None if rates is None else rates.floor(work) / (1e3 * whole.clients)


def _print(line: dict[str, Any], told: dict[str, Any]) -> None:
    title = ", ".join(f"{k} {v}" for k, v in told.items())
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    seconds, share = line["seconds"], line["share_of_the_floor"]
    alone, times = line["sequential_microseconds_per_client"], line["times_faster_than_sequential"]
    lines = {
        "clients, rows of each": f"{line['clients']}, {line['rows']}",
        "local training": f"{seconds['clients']:.3f} s, {line['microseconds_per_client']:.0f} us a client",
        "server": f"{seconds['server']:.3f} s, {line['server_share']:.1%} of the round (GPU: ≤ 10 %)",
        "one after the other": f"{alone:.0f} us a client, {times:.1f} times as long (GPU: ≥ 50)",
        "what it cannot do without": f"{line['gigabytes']:.1f} GB, {line['teraflop']:.2f} TFLOP",
        "share of the floor": "not known for a CPU" if share is None else f"{share:.1%} (GPU: ≥ 60 %)",
        "largest difference from clients alone": f"{line['error']:.1e}",
    }
    for name, value in lines.items():
        table.add_row(name, value)
    Console(width=None if Console().is_terminal else 170).print(table)
