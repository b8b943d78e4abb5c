"""The public ops against plain torch: what ``mmfl-fast bench ops`` runs."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from . import cross_gram_sq, gram, mix, prototype_loss
from .machine import facts, gpu_rates
from .measure import measure, missing
from .registry import Case
from .table import print_table

_WINGS = (gram, mix, cross_gram_sq, prototype_loss)
# With kernels; the reference is a baseline of each.
_BACKENDS = {"cpu": ("native",), "cuda": ("native", "triton")}


def cases(device: str) -> list[Case]:
    """All cases for ``"cpu"`` or ``"cuda"``, in the order of the table."""
    return [case for wing in _WINGS for case in (wing.GPU_CASES if device == "cuda" else wing.CASES)]


def run(device: str, only: str, seconds: float, json_file: Path | None) -> bool:
    """Measure, print the table and write the numbers.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        only: a primitive, or text that a case has in its name; empty for all cases.
        seconds: to spend on the timing of each case.
        json_file: where to write the numbers, after every case; None for nowhere.

    Returns:
        Whether every result was right. A missed target does not count.

    Raises:
        ValueError: no GPU, or no case of such a name.
        OSError: the file cannot be written; known before anything is measured.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU")
    chosen = _selected(cases(device), only)
    write = _writer(json_file)
    pairs, skipped = _pairs(chosen, device)
    rates = gpu_rates() if device == "cuda" else None
    told = facts(device, rates)
    lines: list[dict[str, Any]] = []
    # Drawn between cases only: a thread that draws would take its time from what is measured.
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=len(pairs))
        for case, backend in pairs:
            progress.update(task, description=f"{case.name}, {backend}", refresh=True)
            lines.append(measure(case, backend, device, seconds, rates))
            write({"machine": told, "skipped": skipped, "cases": lines})
            # Inputs of gigabytes wait in cycles of closures for a collection.
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
            progress.advance(task)
    print_table(lines, skipped, told)
    return all("ours" in line for line in lines)


def _selected(every: Sequence[Case], only: str) -> list[Case]:
    chosen = [case for case in every if only == case.primitive]
    chosen = chosen or [case for case in every if only.lower() in case.name.lower()]
    if not chosen:
        names = "\n".join(f"  {case.name}" for case in every)
        raise ValueError(f"--only {only!r} is in the name of no case; the cases are\n{names}")
    return chosen


def _writer(path: Path | None) -> Callable[[dict[str, Any]], object]:
    if path is None:
        return lambda _: None
    # Asks the file system, and leaves an earlier file as it is until there is a number.
    with path.open("a"):
        pass
    return lambda content: path.write_text(json.dumps(content, indent=2) + "\n")


def _pairs(chosen: Sequence[Case], device: str) -> tuple[list[tuple[Case, str]], list[dict[str, str]]]:
    """Cases with the backends that run them here; primitives that a backend does not run, and why."""
    pairs, skipped = [], []
    for case in chosen:
        for backend in _BACKENDS[device]:
            reason = missing(case.primitive, backend, device)
            if not reason:
                pairs.append((case, backend))
                continue
            note = {"primitive": case.primitive, "backend": backend, "reason": reason}
            if note not in skipped:
                skipped.append(note)
    return pairs, skipped
