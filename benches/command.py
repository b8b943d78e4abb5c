"""The commands ``mmfl-fast bench ops``, ``sim``, ``growth``, ``rounds``, ``server`` and ``population``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer


class Device(str, Enum):
    """Where a bench runs."""

    cpu = "cpu"
    cuda = "cuda"


def bench_ops(
    device: Annotated[Device, typer.Option(help="`cuda` has cases of its own, larger ones.")] = Device.cpu,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too, after every case.")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="TEXT", help="Take the cases with this in their name, as `K=64`.")
    ] = "",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels. Default: torch's.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="For the timing of a case; every call has at least five turns.")
    ] = 2.0,
) -> None:
    """Time the ops beside plain torch, and say which targets they meet.

    Every result is compared with float64 first; a wrong one is not timed, and the exit status is 1.

    Then ours, the best torch expressions and the reference backend take turns in one process. Times are
    p20, p50 and p80 in milliseconds; "measured" is our p50 divided by theirs: below 1, ours is faster.
    A missed target is printed as one and does not change the exit status.

    Examples:
      mmfl-fast bench ops

      mmfl-fast bench ops --only angular --threads 2 --json angular.json

      mmfl-fast bench ops --device cuda --seconds 1 --json gpu.json
    """
    # Cases make their baselines when they are imported; `--help` does without.
    from . import ops

    if threads is not None:
        torch.set_num_threads(threads)
    if not ops.run(device.value, only, seconds, json_file):
        raise typer.Exit(1)


def bench_sim(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="TEXT", help="Take the workloads with this in their name, as `m3fed`.")
    ] = "",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine. Default: torch's.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="For each workload; every contender has at least five turns.")
    ] = 10.0,
    peers: Annotated[
        bool, typer.Option(help="Measure jax, pfl and flwr[simulation] too, those that are installed.")
    ] = True,
) -> None:
    """Time the local training of all clients beside a plain torch loop on one thread, on a CPU.

    Parameters after the round are compared first, client by client, with those of the loop in float64; a
    wrong result is not timed, and the exit status is 1.

    Then the loop, the engine on autograd (generic) and the engine on recorded steps (native) take turns.
    Ratios are of medians: below 1, the engine is faster. On plain FedAvg other simulators take turns with
    them, each with the threads given, and everyone's round ends with the mean of the parameters.

    Examples:
      mmfl-fast bench sim --threads 2

      mmfl-fast bench sim --only MLP --json sim.json
    """
    from . import sim

    if not sim.run(only, threads, seconds, json_file, peers):
        raise typer.Exit(1)


def bench_growth(
    clients: Annotated[
        str, typer.Option(metavar="K1,K2,...", help="Numbers of clients of one small model.")
    ] = "10,100,1000,10000,100000",
    widths: Annotated[
        str, typer.Option(metavar="D1,D2,...", help="Widths of the model's layers, of 100 clients.")
    ] = "16,64,256,1024",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the times.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine. Default: torch's.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="For each size; both contenders have at least five turns.")
    ] = 2.0,
) -> None:
    """Time an optimiser step beside a plain torch loop as clients and parameters grow, on a CPU.

    100,000 clients take 2.2 GiB, and at least six rounds of some ten seconds on two threads.

    Example:
      mmfl-fast bench growth --threads 2 --clients 10,1000 --plot growth.png
    """
    from . import growth

    counts, sizes = _sizes("--clients", clients, 1), _sizes("--widths", widths, 1)
    if threads is not None:
        torch.set_num_threads(threads)
    growth.run(counts, sizes, seconds, json_file, picture)


def bench_rounds(
    device: Annotated[Device, typer.Option(help="Where the clients train.")] = Device.cpu,
    clients: Annotated[int, typer.Option(min=8, help="In a round.")] = 1000,
    rows: Annotated[int, typer.Option(min=1, help="Of each client.")] = 256,
    sequential: Annotated[
        int, typer.Option(min=8, help="Clients of the round in which one follows the other.")
    ] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count, after one to warm up.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels. Default: torch's.")
    ] = None,
) -> None:
    """Time whole rounds of M3Fed with many clients, on a CPU or a GPU.

    Clients in a stack are compared with the same ones alone first; if they differ, nothing is timed. Beside
    the round stand one client after the other and, on a GPU, the share of what its memory and its multipliers
    could do at best, both measured in the same run.

    Examples:
      mmfl-fast bench rounds --threads 2

      mmfl-fast bench rounds --device cuda --clients 10000 --json rounds.json
    """
    from . import rounds as bench

    if threads is not None:
        torch.set_num_threads(threads)
    if not bench.run(device.value, clients, rows, sequential, rounds, json_file):
        raise typer.Exit(1)


def bench_server(
    clients: Annotated[
        str, typer.Option(metavar="K1,K2,...", help="Numbers of clients.")
    ] = "10,30,100,300,1000,3000,10000",
    parameters: Annotated[int, typer.Option(min=1, help="Elements of a client's row.")] = 20_000,
    sketch: Annotated[int, typer.Option(min=1, help="Columns of a sketch.")] = 4096,
    landmarks: Annotated[int, typer.Option(min=2, help="Clients that stand for all.")] = 256,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the times over the clients.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels. Default: torch's.")
    ] = None,
) -> None:
    """Time similarity and clustering of clients as their number grows, exact and approximate.

    The approximation is what `sketch` and `landmarks` of m3fed switch on. Beside the times stand its error in
    the angular similarity and how well both ways find the groups that the rows are drawn from.

    Examples:
      mmfl-fast bench server --threads 2

      mmfl-fast bench server --clients 64,512 --parameters 1000000 --plot server.png
    """
    from . import server

    counts = _sizes("--clients", clients, 2)
    if threads is not None:
        torch.set_num_threads(threads)
    server.run(counts, parameters, sketch, landmarks, json_file, picture)


def bench_population(
    clients: Annotated[
        str, typer.Option(metavar="K1,K2,...", help="Registered clients.")
    ] = "10000,100000,1000000",
    sampled: Annotated[int, typer.Option(min=1, help="Of them in a round.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count, after one to warm up.")] = 10,
    memory_gib: Annotated[
        float, typer.Option(min=0.5, help="Limit of the process's data, which the system enforces.")
    ] = 16.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
    ] = None,
) -> None:
    """Count time and memory of rounds as the population grows and the sample does not.

    Example:
      mmfl-fast bench population --clients 10000,1000000 --json population.json
    """
    from . import population

    population.run(_sizes("--clients", clients, sampled), sampled, rounds, memory_gib, json_file)


def _sizes(option: str, given: str, least: int) -> list[int]:
    words = given.split(",")
    if not all(word.isdecimal() and int(word) >= least for word in words):
        raise typer.BadParameter(
            f"expected integers of at least {least}, as in {least},{10 * least}; got {given!r}",
            param_hint=option,
        )
    return [int(word) for word in words]
