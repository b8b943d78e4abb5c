"""``--dry-run``: what a run or a comparison will need, told before it is spent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmfl_fast import algorithms
from mmfl_fast.experiments.plan import Method, Plan
from mmfl_fast.experiments.presets import Experiment
from mmfl_fast.federation import EngineConfig
from mmfl_fast.federation.config import split_options
from mmfl_fast.federation.forecast import Forecast, forecast, in_bytes


class DoesNotFitError(ValueError):
    """A run needs more than there is; the message names a setting with which it fits."""


def tell_run(experiment: Experiment, out: Path) -> None:
    """Print what a run will need.

    Raises:
        DoesNotFitError: more than there is.
    """
    method = Method.parse(experiment.algorithm)
    found = _forecast(experiment, method, experiment.seed, out)
    table = Table(box=None, show_header=False)
    for name, value in _facts(found):
        table.add_row(name, value)
    Console().print(table, soft_wrap=True, highlight=False, markup=False)
    _refuse([(method.label, found)])


def tell_comparison(plan: Plan, out: Path, jobs: int | None) -> None:
    """Print what the runs of a comparison will need, one of each method and setting.

    Raises:
        DoesNotFitError: more than there is, for one of them or for all that run side by side.
    """
    cores = os.cpu_count() or 1
    jobs = min(jobs or cores, len(list(plan.cells)))
    table = Table("setting", "method", "a client sends", "memory", "disk", "a round", "a run", box=None)
    found = []
    for setting in plan.settings:
        experiment = plan.experiment(setting)
        for method in plan.methods:
            each = _forecast(experiment, method, plan.seeds[0], out)
            found.append((f"{method.label} {setting.label}".strip(), each))
            table.add_row(
                setting.label,
                method.label,
                in_bytes(each.measured.up),
                in_bytes(each.needs(each.engine, each.sampled).total),
                in_bytes(each.disk_needed),
                _duration(each.round_seconds),
                _duration(each.run_seconds),
            )
    # A run has its share of the cores: together they take what one after the other on all cores would.
    total = len(plan.seeds) * sum(each.run_seconds * each.threads / cores for _, each in found)
    count = len(plan.seeds) * len(found)
    console = Console()
    console.print(table, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{count} runs, {jobs} at a time: {_duration(total)} at least, the server's steps not counted",
        soft_wrap=True,
        highlight=False,
    )
    _refuse(found)
    largest = sorted((each.needs(each.engine, each.sampled).total for _, each in found), reverse=True)
    together, free = sum((largest * jobs)[:jobs]), min(each.memory.free for _, each in found)
    if together > free:
        fitting = max(1, int(free // largest[0]))
        raise DoesNotFitError(
            f"memory: {jobs} runs at a time need {in_bytes(together)}, {in_bytes(free)} are free; "
            f"it fits with --jobs {fitting}"
        )


def _forecast(experiment: Experiment, method: Method, seed: int, out: Path) -> Forecast:
    kind = algorithms.get(method.algorithm)
    engine, own = split_options(method.options_in(experiment), EngineConfig, kind.Config)
    return forecast(
        experiment.federation(seed), kind(own), rounds=experiment.rounds, seed=seed, engine=engine, out=out
    )


def _facts(found: Forecast) -> Iterable[tuple[str, str]]:
    m, needs = found.measured, found.needs(found.engine, found.sampled)
    least, most = m.parameters
    yield "clients", f"{found.clients:,} registered, {found.sampled:,} in a round, {found.tested:,} tested"
    yield "parameters of a client", f"{most:,}" if least == most else f"{least:,} to {most:,}"
    yield "bytes in a round", f"{in_bytes(found.sampled * m.up)} up, {in_bytes(found.sampled * m.down)} down"
    each = ""
    if found.world > 1:
        each = f" in each of {found.here} processes"
        yield "processes", f"{found.world}, {found.here} of them on this machine; they share the clients"
    yield (
        "memory",
        f"{in_bytes(needs.total)} more{each}, of {in_bytes(found.memory.free)} free ({found.memory.bound})",
    )
    for name, value in (
        ("standardised data", needs.standardised),
        ("setting up", needs.setting_up),
        ("state of clients", needs.personal),
        ("state of the server", needs.server),
        ("models in a round", needs.round),
    ):
        yield f"  {name}", in_bytes(value)
    yield "disk", f"{in_bytes(found.disk_needed)}, of {in_bytes(found.disk)} free"
    yield "chunk", f"{m.chunk} client{'s' * (m.chunk > 1)} at a time on each of {found.threads} threads"
    for name, kind in m.steps.items():
        yield f"steps of pass {name!r}", kind if kind == "native" else f"autograd: {kind}"
    yield (
        "time of a round",
        f"{_duration(found.round_seconds)} for the clients; the server's step is not in it",
    )
    yield "time of an evaluation", _duration(found.evaluation_seconds)
    yield "time of the run", f"{_duration(found.run_seconds)} for {found.rounds} rounds"
    yield (
        "measured on",
        (
            f"{m.timed} clients, small and large, trained twice on one thread: the second time counts; "
            f"sizes on {m.clients} clients"
        ),
    )


def _refuse(found: Iterable[tuple[str, Forecast]]) -> None:
    for label, each in found:
        refusal = each.refusal()
        if refusal is not None:
            raise DoesNotFitError(f"{label} does not fit: {refusal}")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
