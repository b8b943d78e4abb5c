"""Whether the values of a tensor can be looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

_own = threading.local()


class HiddenValues:
    """Values of the batch that a step is recorded with, which say nothing of the batches to come.

    Attributes:
        asked: False, True, or both: whether somebody wanted to know what ``false`` and what ``true`` tell.
    """

    def __init__(self, false: Sequence[Tensor], true: Sequence[Tensor]) -> None:
        self.asked: set[bool] = set()
        self._told = {False: false, True: true}

    def tells(self, tensor: Tensor, value: bool) -> bool:
        """Whether a tensor is one of those that hold nothing but ``value`` in every batch."""
        self.asked.add(value)
        return any(_same_memory(tensor, known) for known in self._told[value])


@contextmanager
def hidden_values(false: Sequence[Tensor], true: Sequence[Tensor] = ()) -> Iterator[HiddenValues]:
    """Hide all values in this thread, but that these tensors hold nothing but False, nothing but True."""
    before = getattr(_own, "hidden", None)
    _own.hidden = HiddenValues(false, true)
    try:
        yield _own.hidden
    finally:
        _own.hidden = before


def surely_all(tensor: Tensor, value: bool) -> bool:
    """Whether a bool tensor holds nothing but ``value``, and that can be told for free."""
    hidden: HiddenValues | None = getattr(_own, "hidden", None)
    if hidden is not None:
        return hidden.tells(tensor, value)
    if tensor.device.type != "cpu" or not are_known(tensor):
        return False
    return bool(tensor.all()) if value else not tensor.any()


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def are_known(tensor: Tensor) -> bool:
    """False under ``torch.compile``, ``torch.func`` transforms and :func:`hidden_values`.

    And for meta and fake tensors.
    """
    return getattr(_own, "hidden", None) is None and _are_there(tensor)


def are_recorded(tensor: Tensor) -> bool:
    """Whether a tensor has values that :func:`hidden_values` alone hides.

    What makes the shape of another of them is refused, unless it is known without the batch.
    """
    return getattr(_own, "hidden", None) is not None and _are_there(tensor)


def _are_there(tensor: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    # Asked first because is_fake unwraps every kind of tensor, which takes as long as a small kernel.
    if type(tensor) is Tensor and torch._C._len_torch_dispatch_stack() == 0:
        return not tensor.is_meta
    return not (tensor.is_meta or is_fake(tensor))
