"""Bench cases: inputs, our call, what it is compared with, and how its result is checked, said once.

A case is timed only after its result has passed a comparison with float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: of the line.
        ours: the call that is timed.
        baselines: what it is compared with, by name; the best torch expressions, the read floor.
        exact: the result in float64, flattened by the caller to one tensor.
        tolerance: the largest error allowed, as a share of the largest exact value.
        result: our result as one tensor, when ``ours`` returns something else.
    """

    name: str
    ours: Call
    baselines: Mapping[str, Call]
    exact: Callable[[], Tensor]
    tolerance: float
    result: Callable[[Any], Tensor] = field(default=lambda output: output)


@dataclass(frozen=True)
class Timing:
    """Quantiles of the wall time in milliseconds."""

    p20: float
    p50: float
    p80: float


_builders: list[Callable[[], Case]] = []


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register a function that makes the inputs and returns a :class:`Case`."""
    _builders.append(build)
    return build


def builders() -> list[Callable[[], Case]]:
    """All registered cases, in order of registration; inputs are made when one is called."""
    return list(_builders)


def error_of(bench: Case) -> float:
    """Largest error of our result, as a share of the largest exact value; NaN counts as infinite."""
    with torch.no_grad():
        exact = bench.exact()
        ours = bench.result(bench.ours()).double()
    error = float((ours - exact).abs().max() / exact.abs().max())
    return error if error == error else float("inf")


def alternate(calls: Mapping[str, Call], seconds: float = 2.0) -> dict[str, Timing]:
    """Time several calls in turns in this process, so that all meet the same machine.

    Args:
        calls: by name.
        seconds: to spend on all of them together; each runs at least five times.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: _quantiles(values) for name, values in times.items()}


def _quantiles(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Timing(ordered[round(0.2 * last)], ordered[round(0.5 * last)], ordered[round(0.8 * last)])
