"""One case on one backend: checked against float64, then timed beside its baselines."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mmfl_fast import backends, use_backend
from mmfl_fast.kernels.extension import _C

from .machine import Rates
from .memory import extra_bytes
from .registry import (
    BANDWIDTH,
    EXTRA_MEMORY,
    FLOOR,
    TIME,
    Calls,
    Case,
    Target,
    at_most,
    error_of,
    memory_over,
)
from .timing import Contender, alternate

_MOST_SETS = 16
_TRITON_TARGET = at_most(1.3, "native")


def missing(primitive: str, backend: str, device: str) -> str:
    """Why a backend cannot run a primitive here; empty if it can."""
    status = backends()[backend]
    if device not in status.devices:
        return status.reason
    if device == "cuda" and backend == "native" and not hasattr(_C, f"{primitive}_cuda"):
        return "no CUDA kernel"
    if backend == "triton" and not importlib.util.find_spec(f"mmfl_fast.kernels.{primitive}.triton"):
        return "no Triton kernel"
    return ""


def measure(case: Case, backend: str, device: str, seconds: float, rates: Rates | None) -> dict[str, Any]:
    """Check a case and, if its result is right, time it.

    Args:
        case: the case.
        backend: ``"native"`` or ``"triton"``.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: to spend on its timing.
        rates: of the GPU.

    Returns:
        A line of the JSON file; without ``"ours"`` if the result is wrong or there is none (``"failed"``).
    """
    line: dict[str, Any] = {"case": case.name, "primitive": case.primitive, "backend": backend}
    try:
        sets = _sets(case, device)
        with use_backend(backend):
            error = error_of(sets[0])
        line |= {"error": error, "tolerance": case.tolerance}
        if error <= case.tolerance:
            line |= _measured(case, sets, backend, device, seconds, rates)
    except Exception as problem:
        # One case that does not fit, or a kernel that cannot run, must not cost the others' numbers.
        line["failed"] = _first_line(problem)
    return line


def _sets(case: Case, device: str) -> list[Calls]:
    """The inputs; on a GPU as often as it takes for all of them together to leave the L2 cache."""
    if device != "cuda":
        return [case.calls(device)]
    before = torch.cuda.memory_allocated()
    sets = [case.calls(device)]
    size = max(1, torch.cuda.memory_allocated() - before)
    wanted = 4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return sets + [case.calls(device) for _ in range(min(-(-wanted // size), _MOST_SETS) - 1)]


def _measured(
    case: Case, sets: Sequence[Calls], backend: str, device: str, seconds: float, rates: Rates | None
) -> dict[str, Any]:
    ours = [calls.ours for calls in sets]
    contenders = {"ours": Contender(ours, backend)}
    for name in sets[0].baselines:
        contenders[name] = Contender([calls.baselines[name] for calls in sets], backend)
    targets = case.targets
    if backend == "triton" and not missing(case.primitive, "native", device):
        contenders["native"] = Contender(ours, "native")
        targets = (*targets, _TRITON_TARGET)
    contenders["reference"] = Contender(ours, "reference")
    not_measured = _warm_up(contenders)
    timings = alternate(contenders, device, seconds, case.repeats)
    own = timings.pop("ours")
    ratios = {name: own.p50 / timing.p50 for name, timing in timings.items()}
    line: dict[str, Any] = {
        "ours": asdict(own),
        "baselines": {name: {**asdict(timing), "ratio": ratios[name]} for name, timing in timings.items()},
    }
    quantities = {**ratios, TIME: 1e3 * own.p50}
    work = sets[0].work
    if rates is not None and work is not None:
        quantities[BANDWIDTH] = work.moved / own.p50 / rates.copy
        quantities[FLOOR] = rates.floor(work) / own.p50
    if sets[0].avoided:
        memory = _memory(case, sets[0], not_measured, backend, device)
        line["extra_bytes"] = memory
        quantities |= _memory_ratios(memory, sets[0].avoided)
    line["quantities"] = quantities
    line["targets"] = [_outcome(target, quantities.get(target.quantity)) for target in targets]
    if not_measured:
        line["not_measured"] = not_measured
    return line


def _warm_up(contenders: dict[str, Contender]) -> dict[str, str]:
    """Call everything once; a baseline that cannot run is taken out, and the reason returned."""
    not_measured = {}
    for name, contender in list(contenders.items()):
        try:
            with use_backend(contender.backend):
                for call in contender.calls:
                    call()
        except Exception as problem:
            if name == "ours":
                raise
            not_measured[name] = _first_line(problem)
            del contenders[name]
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
    return not_measured


def _memory(
    case: Case, calls: Calls, not_measured: dict[str, str], backend: str, device: str
) -> dict[str, int]:
    names = [None, *(name for name in calls.baselines if name not in not_measured)]
    found = {name or "ours": extra_bytes(case, calls, name, backend, device) for name in names}
    return {name: size for name, size in found.items() if size is not None}


def _memory_ratios(memory: dict[str, int], avoided: int) -> dict[str, float]:
    if "ours" not in memory:
        return {}
    ours = memory["ours"]
    ratios = {memory_over(name): ours / max(size, 1) for name, size in memory.items() if name != "ours"}
    return {EXTRA_MEMORY: ours / avoided, **ratios}


def _outcome(target: Target, value: float | None) -> dict[str, Any]:
    return {
        **asdict(target),
        "measured": value,
        "met": None if value is None else target.met(value),
    }


def _first_line(problem: Exception) -> str:
    told = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {told[0] if told else 'no message'}"
