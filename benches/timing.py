"""Times of several calls, taken in turns in one process so that all meet the same machine."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mmfl_fast import use_backend

from .registry import Call

_FEWEST_TURNS = 5
# What the host has to launch a call before a GPU begins with it: clock ticks, and about what they take.
_HEAD_START, _HEAD_START_MILLISECONDS = 2_000_000, 1.2


@dataclass(frozen=True)
class Timing:
    """Quantiles of the time in milliseconds: wall time on a CPU, time between two events on a GPU.

    There a call that is timed by itself is launched while the GPU still waits, so that what the host takes
    for it does not count; it does where a turn has several calls.
    """

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Contender:
    """A call, once for every set of inputs, and the backend that our ops take in it."""

    calls: Sequence[Call]
    backend: str


def alternate(
    contenders: Mapping[str, Contender], device: str, seconds: float, repeats: int = 1
) -> dict[str, Timing]:
    """Time contenders in turns; what they need once, such as compilation, has to be behind them.

    Args:
        contenders: by name, the measured one first; rounds take their sets of inputs in turn.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: to spend on all of them together, in equal shares. One that has used up its share has no
            more turns, and when the first one has, all end; each has at least five.
        repeats: calls per turn, of which the mean is taken.
    """
    clock = _event_milliseconds if device == "cuda" else _wall_milliseconds
    times: dict[str, list[float]] = {name: [] for name in contenders}
    share = 1e3 * seconds / len(contenders)
    waits = _HEAD_START_MILLISECONDS if device == "cuda" and repeats == 1 else 0.0
    # Who runs after whom is drawn anew in every round: the caches hold what the one before has read.
    order, shuffle = list(contenders), random.Random(0).shuffle
    first = order[0]
    for turn in itertools.count():
        shuffle(order)
        for name in order:
            contender = contenders[name]
            call = contender.calls[turn % len(contender.calls)]
            with use_backend(contender.backend):
                times[name].append(clock(call, repeats) / repeats)
        if turn + 1 >= _FEWEST_TURNS:
            order = [n for n in order if repeats * sum(times[n]) + waits * len(times[n]) < share]
        if first not in order:
            break
    return {name: _quantiles(values) for name, values in times.items()}


def _wall_milliseconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start)


def _event_milliseconds(call: Call, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if repeats == 1:
        torch.cuda._sleep(_HEAD_START)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _quantiles(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Timing(ordered[round(0.2 * last)], ordered[round(0.5 * last)], ordered[round(0.8 * last)])
