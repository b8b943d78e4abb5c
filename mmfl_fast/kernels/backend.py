"""Which implementation of a primitive runs: the one place where that is decided."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mmfl_fast.kernels import extension

NAMES = ("auto", "reference", "native", "triton")


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
        if extension._C.built_with_cuda:
            on_gpu = "CUDA kernels of gram and mix on request, but torch sees no GPU"
            if torch.cuda.is_available():
                served, on_gpu = ("cpu", "cuda"), "CUDA kernels of gram and mix on request"
        native = BackendStatus(served, f"{extension._C.simd_level()} kernels; {on_gpu}")
    return {
        "reference": BackendStatus(("cpu", "cuda"), "plain torch expressions"),
        "native": native,
        "triton": BackendStatus((), "no Triton kernels in this version"),
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


def _has_cuda_kernels(device: torch.device) -> bool:
    if extension.missing or not extension._C.built_with_cuda:
        return False
    # They need the matrix instructions of compute capability 8.0. What is traced is not run here.
    return torch.compiler.is_compiling() or torch.cuda.get_device_capability(device) >= (8, 0)


def uses_reference(device: torch.device, cuda_kernel: bool = False) -> bool:
    """Whether tensors on ``device`` go to the plain torch expression; the other answer is the registered op.

    Left to choose, a ``torch.func`` transform inside ``torch.compile`` gets the plain expression: torch
    cannot trace a custom gradient through most of them.

    No GPU has run the CUDA kernels yet, so nobody gets them without asking: ``use_backend("native")``.

    Args:
        device: of the tensors.
        cuda_kernel: whether the primitive has a CUDA kernel.

    Raises:
        RuntimeError: a backend was asked for that does not serve this device.
    """
    if _requested == "reference":
        return True
    native = not extension.missing and device.type in ("cpu", "meta")
    if device.type == "cuda" and cuda_kernel:
        native = _has_cuda_kernels(device)
    if _requested == "auto":
        traced = torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        return not native or traced or device.type == "cuda"
    if not native:
        status = backends()[_requested]
        raise RuntimeError(f"backend {_requested!r} does not serve {device.type} tensors: {status.reason}")
    return False
