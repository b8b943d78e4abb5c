"""Bench cases: inputs, our call, what it is compared with, and how its result is checked, said once.

A case is timed only after its result has passed a comparison with float64.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
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
        moved: bytes that have to be read and written, for a case bound by memory.
    """

    name: str
    ours: Call
    baselines: Mapping[str, Call]
    exact: Callable[[], Tensor]
    tolerance: float
    result: Callable[[Any], Tensor] = field(default=lambda output: output)
    moved: int = 0


@dataclass(frozen=True)
class Timing:
    """Quantiles of the time in milliseconds: wall time on a CPU, time between two events on a GPU."""

    p20: float
    p50: float
    p80: float


_MOST_SETS = 16
_builders: list[Callable[[], Case]] = []
_gpu_builders: list[Callable[[], Case]] = []


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register a function that makes the inputs and returns a :class:`Case`."""
    _builders.append(build)
    return build


def gpu_case(build: Callable[[], Case]) -> Callable[[], Case]:
    """The same for a case of a size that only a GPU takes."""
    _gpu_builders.append(build)
    return build


def builders(gpu: bool = False) -> list[Callable[[], Case]]:
    """All registered cases, in order of registration; inputs are made when one is called."""
    return [*_builders, *(_gpu_builders if gpu else [])]


def error_of(bench: Case) -> float:
    """Largest error of our result, as a share of the largest exact value; NaN counts as infinite."""
    with torch.no_grad():
        exact = bench.exact()
        ours = bench.result(bench.ours()).double()
    error = float((ours - exact).abs().max() / exact.abs().max())
    return error if error == error else float("inf")


def alternate(sets: Sequence[Mapping[str, Call]], seconds: float = 2.0) -> dict[str, Timing]:
    """Time several calls in turns in this process, so that all meet the same machine.

    Args:
        sets: the calls by name, once for every set of inputs; rounds take the sets in turn.
        seconds: to spend on all of them together; each runs at least five times.
    """
    clock = _event_milliseconds if torch.get_default_device().type == "cuda" else _wall_milliseconds
    times: dict[str, list[float]] = {name: [] for name in sets[0]}
    for calls in sets:
        for call in calls.values():
            clock(call)
    end = time.perf_counter() + seconds
    rounds = itertools.cycle(sets)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in next(rounds).items():
            times[name].append(clock(call))
    return {name: _quantiles(values) for name, values in times.items()}


def _wall_milliseconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _event_milliseconds(call: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def build_sets(build: Callable[[], Case]) -> list[Case]:
    """A case, on a GPU as often as it takes for the inputs of all copies together to leave the L2 cache."""
    if torch.get_default_device().type != "cuda":
        return [build()]
    before = torch.cuda.memory_allocated()
    cases = [build()]
    size = max(1, torch.cuda.memory_allocated() - before)
    wanted = 4 * torch.cuda.get_device_properties(torch.get_default_device()).L2_cache_size
    cases += [build() for _ in range(min(-(-wanted // size), _MOST_SETS) - 1)]
    return cases


def copy_bandwidth() -> float:
    """Bytes read and written per millisecond by a large copy on the GPU."""
    source = torch.empty(1 << 30, dtype=torch.uint8)
    target = torch.empty_like(source)
    timing = alternate([{"copy": lambda: target.copy_(source)}], seconds=0.5)
    return 2 * source.numel() / timing["copy"].p50


def _quantiles(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Timing(ordered[round(0.2 * last)], ordered[round(0.5 * last)], ordered[round(0.8 * last)])
