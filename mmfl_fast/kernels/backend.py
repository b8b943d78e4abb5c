"""Which implementation of a primitive runs: the one place where that is decided."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd import forward_ad

from mmfl_fast.kernels import extension
from mmfl_fast.kernels.choice import FASTEST

NAMES = ("auto", "reference", "native", "triton")

_BUILT_WITH_CUDA = not extension.missing and bool(extension._C.built_with_cuda)
_CPU = torch.device("cpu")
_NATIVE_ON_CPU = {name for name, backend in FASTEST["cpu"].items() if backend == "native"}
if extension.missing:
    _NATIVE_ON_CPU.clear()
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend runs here.

    Attributes:
        devices: device types it serves, empty if none.
        reason: why it serves no more than that, in words for a person.
    """

    devices: tuple[str, ...]
    reason: str


def backends() -> dict[str, BackendStatus]:
    """Tell what this machine has, and why not the rest.

    Returns:
        ``"reference"``, ``"native"`` and ``"triton"``, each with the device types it serves.
    """
    if extension.missing:
        native = BackendStatus((), extension.missing)
    else:
        served: tuple[str, ...] = ("cpu",)
        on_gpu = "built without CUDA"
        if _BUILT_WITH_CUDA:
            on_gpu = "CUDA kernels on request, but torch sees no GPU"
            if torch.cuda.is_available():
                served, on_gpu = ("cpu", "cuda"), "CUDA kernels on request"
        native = BackendStatus(served, f"{extension._C.simd_level()} kernels; {on_gpu}")
    if not _TRITON_INSTALLED:
        triton = BackendStatus((), "Triton is not installed; run `pip install triton`")
    elif not torch.cuda.is_available():
        triton = BackendStatus((), "Triton needs a GPU, and torch sees none")
    else:
        triton = BackendStatus(("cuda",), "Triton kernels on request")
    return {
        "reference": BackendStatus(("cpu", "cuda"), "plain torch expressions"),
        "native": native,
        "triton": triton,
    }


def _validated(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, NAMES))}; got {name!r}")
    return name


_requested = _validated(os.environ.get("MMFL_BACKEND", "auto"), "MMFL_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block on one backend.

    The choice is process-wide, so that worker threads see it. Its environment form is ``MMFL_BACKEND``.

    Args:
        name: ``"reference"`` (plain torch), ``"native"`` (C++), ``"triton"``, or ``"auto"``.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend serves no device on this machine; the message says why.
    """
    global _requested
    _validated(name, "name")
    if name != "auto" and not backends()[name].devices:
        raise RuntimeError(f"backend {name!r} does not run here: {backends()[name].reason}")
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def _serves(backend: str, device: torch.device, kind: str) -> bool:
    """Whether a backend takes tensors on a device of that kind; meta tensors go to any registered op."""
    if backend == "native" and kind == "cpu":
        return not extension.missing
    if backend == "reference" or kind == "meta":
        return True
    if kind != "cuda" or (backend == "native" and not _BUILT_WITH_CUDA):
        return False
    if backend == "triton" and not _TRITON_INSTALLED:
        return False
    # They need the matrix instructions of compute capability 8.0. What is traced is not run here.
    return torch.compiler.is_compiling() or torch.cuda.get_device_capability(device) >= (8, 0)


def chosen(primitive: str, device: torch.device) -> str:
    """The backend for tensors on ``device``: ``"reference"``, ``"native"`` or ``"triton"``.

    Left to choose, it is the one in :mod:`mmfl_fast.kernels.choice`, or the plain expression where that one
    is not built. Forward-mode derivatives get the plain expression, for kernels have none, and so does a
    ``torch.func`` transform inside ``torch.compile``: torch cannot trace a custom gradient through most of
    them.

    Raises:
        RuntimeError: a backend was asked for that does not serve this device.
        NotImplementedError: one was asked for that has no forward-mode derivative.
    """
    kind = device.type
    forward_mode = forward_ad._current_level >= 0
    if _requested != "auto":
        if forward_mode and _requested != "reference":
            raise NotImplementedError(
                f"backend {_requested!r} has no forward-mode derivatives; "
                'use mmfl_fast.use_backend("reference")'
            )
        if not _serves(_requested, device, kind):
            reason = backends()[_requested].reason
            raise RuntimeError(f"backend {_requested!r} does not serve {kind} tensors: {reason}")
        return _requested
    if forward_mode or (torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()):
        return "reference"
    fastest = FASTEST.get(kind, FASTEST["cpu"])[primitive]
    return fastest if _serves(fastest, device, kind) else "reference"


def native_on_cpu(primitive: str) -> bool:
    """Whether :func:`chosen` is ``"native"`` for CPU tensors that nobody traces or transforms."""
    if _requested == "auto" and forward_ad._current_level < 0:
        return primitive in _NATIVE_ON_CPU
    return chosen(primitive, _CPU) == "native"


def gpu_kernels(primitive: str, device: torch.device) -> str:
    """Whose kernels a registered op runs on a GPU, ``"native"`` or ``"triton"``.

    The op may have been called directly, or traced under another choice than the one that holds now: then
    it is the extension, or Triton where that was built without CUDA.
    """
    backend = chosen(primitive, device)
    if backend == "reference":
        backend = "native" if _serves("native", device, device.type) else "triton"
    return backend
