"""Several methods over several seeds: cells that run side by side and survive a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmfl_fast.experiments.presets import Experiment
from mmfl_fast.experiments.run import run

Results = dict[str, dict[int, dict[str, Any]]]


class UnequalEffortError(RuntimeError):
    """Methods of a comparison did not take the same optimiser steps over the same number of rows."""


class CellError(RuntimeError):
    """A cell of a comparison failed: the message names it, the cause is the cell's own error, if known."""


def compare(
    experiment: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    jobs: int | None = None,
    progress: bool | None = None,
) -> Results:
    """Run every method with every seed.

    A cell is the run directory ``out/<method>/seed-<seed>``. Cells that are complete are not run again and
    interrupted ones continue from their checkpoint, so calling this again after a kill finishes the rest.

    Args:
        experiment: data, rounds and options.
        methods: names of algorithms.
        seeds: each gives every method the same partition, initialisation and batches.
        out: folder of the comparison.
        jobs: cells at a time; default one per core on a CPU, one on a GPU.
        progress: show a bar; None shows it on a terminal.

    Returns:
        Method -> seed -> content of the cell's ``result.json``.

    Raises:
        ValueError: unknown method or option, or a method named twice.
        CellError: a cell failed, and the others were stopped.
        UnequalEffortError: the methods' optimiser steps or rows seen differ; says by how much.
    """
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods: each may be named once; got {', '.join(methods)}")
    experiment.refuse_unknown_options(methods)
    cells = [(method, seed) for seed in seeds for method in methods]
    jobs = jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    jobs = min(jobs, len(cells))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # Workers must not inherit this process's threads, which fork would leave half alive.
    context = multiprocessing.get_context("spawn")
    strangers = multiprocessing.active_children()
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(threads,)
    ) as pool:
        futures = {
            pool.submit(run_cell, experiment, method, seed, cell_folder(out, method, seed)): (method, seed)
            for method, seed in cells
        }
        try:
            _watch(futures, lambda cell: _rounds_done(cell_folder(out, *cell)), experiment.rounds, progress)
        except BaseException:
            # A cell takes hours and can be killed at any instant: nobody waits for the ones under way.
            pool.shutdown(wait=False, cancel_futures=True)
            workers = [p for p in multiprocessing.active_children() if p not in strangers]
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
            raise
    refuse_unequal_effort(out, methods, seeds)
    return {m: {s: _result(cell_folder(out, m, s)) for s in seeds} for m in methods}


def run_cell(experiment: Experiment, method: str, seed: int, folder: Path) -> None:
    """Run one method with one seed in its folder, unless it is complete."""
    run(
        experiment.federation(seed),
        method,
        rounds=experiment.rounds,
        seed=seed,
        out=folder,
        config=experiment.options_of(method),
        resume=True,
        progress=False,
        described=experiment.described(),
    )


def cell_folder(out: Path, method: str, seed: int) -> Path:
    """Run directory of a cell."""
    return out / method / f"seed-{seed}"


def refuse_unequal_effort(out: Path, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise unless all methods took the same optimiser steps over as many rows, for every seed."""
    for seed in seeds:
        effort = {method: _effort(cell_folder(out, method, seed)) for method in methods}
        if len(set(effort.values())) > 1:
            told = ", ".join(f"{m}: {steps} steps, {rows} rows" for m, (steps, rows) in effort.items())
            raise UnequalEffortError(f"seed {seed}: the methods did not work equally much ({told})")


def _watch(
    futures: dict[Future[None], tuple[str, int]],
    rounds_done: Callable[[tuple[str, int]], int],
    rounds: int,
    progress: bool | None,
) -> None:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal if progress is None else progress),
    )
    with bar:
        task = bar.add_task("comparing", total=len(futures) * rounds)
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.5)
            for future in done:
                _refuse_failed(future, *futures[future])
            finished = len(futures) - len(pending)
            bar.update(
                task,
                completed=sum(rounds_done(cell) for cell in futures.values()),
                description=f"{finished} of {len(futures)} cells",
            )


def _refuse_failed(future: Future[None], method: str, seed: int) -> None:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise CellError(
            "a worker process was killed, perhaps for want of memory; finish with --resume, with fewer --jobs"
        )
    if error is not None:
        raise CellError(f"{method} with seed {seed}: {error}") from error


def _start_worker(threads: int) -> None:
    """Set a worker process up: torch's threads, and an end that the process which started it decides."""
    torch.set_num_threads(threads)
    # Ctrl-C reaches all processes of a terminal; who started the worker ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # A killed parent cannot end its workers, which would go on in folders that --resume needs.
        os._exit(1)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _rounds_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _effort(folder: Path) -> tuple[int, int]:
    lines = _metrics(folder)
    return sum(line["optimiser_steps"] for line in lines), sum(line["samples_seen"] for line in lines)


def _result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content
