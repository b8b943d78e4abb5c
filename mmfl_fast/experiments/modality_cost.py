"""What a round costs as the number of modalities grows: ``mmfl-fast bench modalities``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmfl_fast import data
from mmfl_fast.data import Federation
from mmfl_fast.experiments.plan import Method
from mmfl_fast.experiments.run import run
from mmfl_fast.federation.run_directory import write_atomically

_CLASSES = 6
_CLIENTS = 8
# A client trains on four fifths, 64: four batches of 16, or one of 64.
_ROWS = 80


@dataclass(frozen=True)
class RoundCost:
    """One method with one number of modalities.

    Attributes:
        method: its label.
        modalities: how many a client has.
        client_seconds: of one client's round, all its passes: median over rounds.
        server_seconds: of the server's step: median over rounds.
        bytes_up: that a client sends in a round.
        bytes_down: that a client is sent in a round.
    """

    method: str
    modalities: int
    client_seconds: float
    server_seconds: float
    bytes_up: float
    bytes_down: float


def noise_federation(modalities: int, shape: Sequence[int]) -> Federation:
    """Eight clients with 64 training rows of Gaussian noise in each of so many modalities of one shape."""
    rng = np.random.default_rng(0)
    count = _CLIENTS * _ROWS
    return data.from_arrays(
        {f"m{j}": rng.normal(size=(count, *shape)) for j in range(modalities)},
        np.arange(count) % _CLASSES,
        np.arange(count) // _ROWS,
        name=f"noise with {modalities} modalities",
    )


def round_cost(method: Method, modalities: int, shape: Sequence[int], rounds: int) -> RoundCost:
    """Run some rounds on noise and read what they cost; the first, which warms up, does not count.

    Args:
        method: what runs.
        modalities: how many.
        shape: of a row in each of them.
        rounds: that count, at least 1.

    Raises:
        ValueError: an option is unknown or does not fit.
    """
    result = run(
        noise_federation(modalities, shape),
        method.algorithm,
        rounds=rounds + 1,
        config={**method.options, "evaluate_every": 1},
        progress=False,
    )
    lines = result.history[1:]
    return RoundCost(
        method.label,
        modalities,
        statistics.median(line["seconds"]["client_pass"] for line in lines),
        statistics.median(line["seconds"]["server"] for line in lines),
        *(
            statistics.fmean(line[key] / line["clients"] for line in lines)
            for key in ("bytes_up", "bytes_down")
        ),
    )


def print_costs(costs: Sequence[RoundCost], shape: Sequence[int]) -> None:
    """Print a table, methods by numbers of modalities."""
    rows = "x".join(str(size) for size in shape)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("method", no_wrap=True)
    for header in ("modalities", "client in ms", "server in ms", "sent up in kB", "sent down in kB"):
        table.add_column(header, justify="right")
    for cost in costs:
        seconds = (f"{1e3 * s:.1f}" for s in (cost.client_seconds, cost.server_seconds))
        sent = (f"{1e-3 * count:.1f}" for count in (cost.bytes_up, cost.bytes_down))
        table.add_row(Text(cost.method), str(cost.modalities), *seconds, *sent)
    told = f"A client and round, {_CLIENTS} clients with {_ROWS * 4 // 5} training rows of {rows} noise each:"
    Console().print(Text(told), table)


def write_costs(costs: Sequence[RoundCost], path: Path) -> None:
    """Write the numbers as a JSON list."""
    write_atomically(path, json.dumps([asdict(cost) for cost in costs], indent=1))
