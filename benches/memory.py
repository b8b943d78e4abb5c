"""Peak memory of one call above its inputs and its results."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfl_fast import use_backend

from .registry import Call, Calls, Case

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_M_MMAP_THRESHOLD = -3
_WARM_UP_SIZE = 8


def extra_bytes(case: Case, calls: Calls, baseline: str | None, backend: str, device: str) -> int | None:
    """What a call allocates at its peak above its inputs and results.

    On a GPU torch's allocator tells. On a CPU a fresh process makes the inputs, after a first call of tiny
    size, and takes the growth of its resident memory: what an earlier call has left cannot hide anything.

    Args:
        case: the case.
        calls: with its inputs, for a GPU.
        baseline: the name of one, None for our call.
        backend: that our op takes.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Bytes; None on a CPU whose system does not tell them.
    """
    if device == "cuda":
        with use_backend(backend):
            return _extra_on_gpu(_named(calls, baseline))
    if not _CLEAR_REFS.exists():
        return None
    # A forked process would start with this one's memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_extra_on_cpu, case, baseline, backend, torch.get_num_threads()).result()


def _named(calls: Calls, baseline: str | None) -> Call:
    return calls.ours if baseline is None else calls.baselines[baseline]


def _extra_on_gpu(call: Call) -> int:
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    return torch.cuda.max_memory_allocated() - before - _bytes(results)


def _extra_on_cpu(case: Case, baseline: str | None, backend: str, threads: int) -> int:
    # glibc keeps freed blocks below its threshold, which grows on its own; fixed, it gives them back.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    torch.set_num_threads(threads)
    with use_backend(backend):
        _named(case.calls("cpu", largest=_WARM_UP_SIZE), baseline)()
        call = _named(case.calls("cpu"), baseline)
        _CLEAR_REFS.write_text(_RESET_PEAK)
        before = _resident("VmRSS")
        results = call()
        return _resident("VmHWM") - before - _bytes(results)


def _resident(line: str) -> int:
    found = re.search(rf"{line}:\s+(\d+) kB", _STATUS.read_text())
    assert found, f"{_STATUS} has no {line}"
    return 1024 * int(found[1])


def _bytes(results: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(results))


def _tensors(results: Any) -> Iterator[Tensor]:
    if isinstance(results, Tensor):
        yield results
    else:
        for part in results:
            yield from _tensors(part)
