"""Local training as clients and parameters grow in number: what ``mmfl-fast bench growth`` runs.

All clients take part in a round, with 16 rows each in batches of 8, whatever their number. Time is divided by
the optimiser steps, so a level curve is growth in proportion. The plain loop takes client after client; of
very many it is timed on the first thousand. The results of all clients are in memory until the round ends, as
in a run: 2.2 GiB for 100,000.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from .machine import facts
from .sim import LocalRound, Perceptron, Workload, equal_clients
from .timing import Contender, alternate

_SAMPLES, _BATCH = 16, 8
_CLASSES = 10
# Of the perceptron while the clients grow, and how many clients while its hidden layers do.
_WIDTH, _CLIENTS = 32, 100
_LOOPED = 1000


def run(
    clients: Sequence[int],
    widths: Sequence[int],
    seconds: float,
    json_file: Path | None,
    picture: Path | None,
) -> None:
    """Measure, print the table and write the files.

    Args:
        clients: numbers of clients, of one small model.
        widths: of the hidden layers of a larger model, of 100 clients.
        seconds: to spend on each size.
        json_file: where to write the numbers; None for nowhere.
        picture: where to draw the curves; None for nowhere.
    """
    told = facts("cpu", None)
    lines = [_measure(count, _WIDTH, seconds) for count in clients]
    lines += [_measure(_CLIENTS, width, seconds) for width in widths]
    _print(lines, told)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": told, "sizes": lines}, indent=2) + "\n")
    if picture is not None:
        _draw(lines[: len(clients)], lines[len(clients) :]).savefig(picture, dpi=120)


def _measure(clients: int, width: int, seconds: float) -> dict[str, Any]:
    training, loop = _round(clients, width), _round(min(clients, _LOOPED), width)
    training.engine(native=True)
    timings = alternate(
        {
            "native": Contender([lambda: training.engine(native=True)], "auto"),
            "plain": Contender([loop.plain], "auto"),
        },
        "cpu",
        seconds,
    )
    per_client = _SAMPLES // _BATCH
    per_step = {
        "native": 1e3 * timings["native"].p50 / (clients * per_client),
        "plain": 1e3 * timings["plain"].p50 / (min(clients, _LOOPED) * per_client),
    }
    return {
        "clients": clients,
        "rows": _SAMPLES,
        "parameters": 2 * width * (width + 1) + _CLASSES * (width + 1),
        **{name: asdict(timing) for name, timing in timings.items()},
        "microseconds_per_step": per_step,
        "ratio": per_step["native"] / per_step["plain"],
    }


def _round(clients: int, width: int) -> LocalRound:
    algorithm = Perceptron((width, width, width, _CLASSES), _BATCH)
    federation = equal_clients(clients, width, _SAMPLES, _CLASSES)
    return LocalRound(Workload(f"{clients} clients of width {width}", federation, algorithm))


def _print(lines: Sequence[dict[str, Any]], told: dict[str, Any]) -> None:
    table = Table(title=", ".join(f"{k} {v}" for k, v in told.items()), title_justify="left", box=None)
    for column in ("clients", "parameters", "native [us/step]", "plain [us/step]", "native / plain"):
        table.add_column(column, justify="right")
    for line in lines:
        per_step = line["microseconds_per_step"]
        table.add_row(
            f"{line['clients']}",
            f"{line['parameters']}",
            f"{per_step['native']:.1f}",
            f"{per_step['plain']:.1f}",
            f"{line['ratio']:.3f}",
        )
    Console(width=None if Console().is_terminal else 170).print(table)


def _draw(by_clients: Sequence[dict[str, Any]], by_parameters: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, lines, name in zip(both, (by_clients, by_parameters), ("clients", "parameters"), strict=True):
        for contender, label in (("native", "engine, native steps"), ("plain", "plain loop")):
            values = [line["microseconds_per_step"][contender] for line in lines]
            axes.plot([line[name] for line in lines], values, marker="o", label=label)
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.grid(alpha=0.3)
    both[0].set_ylabel("microseconds per optimiser step")
    both[0].legend()
    figure.suptitle(f"{torch.get_num_threads()} threads")
    return figure
