"""A device for tests that behaves towards Python as a GPU does, on any machine.

Its tensors lie in ordinary memory, but torch takes them for those of another device: what mixes them with CPU
tensors fails, what reads a value is counted, and work can be recorded and repeated as a CUDA graph is, with
the addresses and the Python numbers of the recording. It knows nothing of kernels and streams.

It changes torch for the whole process, so the tests run it in one of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")
_CPU = torch.device("cpu")

# "read": Python or the CPU waited for values. "sent": values went to the device.
events: Counter[str] = Counter()

_READS = (
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
)
# These take indices on the CPU, too, and send them.
_TAKE_INDICES = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")

_Call = tuple[Any, Any, Any, Any]
_tape: list[_Call] | None = None
_undo: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; ``raw`` holds its values."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnDevice:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        tensor.raw = raw
        return tensor

    def tolist(self) -> Any:
        _count("read")
        return self.raw.tolist()

    def numpy(self) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretending() -> Iterator[None]:
    """Inside, ``DEVICE`` is one that tensors can be made on."""
    with _Factories(), _Everything():
        yield


def record(work: Callable[[], None]) -> Callable[[], None]:
    """As :func:`mmfl_fast.federation.launches.record_launches`."""
    global _tape
    assert _tape is None, "recordings do not nest"
    _tape, tape = [], []
    try:
        work()
    finally:
        tape, _tape = _tape, None
        for raw, before in _undo.values():
            raw.untyped_storage().copy_(before.untyped_storage())
        _undo.clear()

    def again() -> None:
        events["repeated"] += 1
        for func, args, kwargs, outputs in tape:
            found = func(*args, **kwargs)
            for kept, new in zip(tree_leaves(outputs), tree_leaves(found), strict=True):
                if isinstance(kept, torch.Tensor) and not _share(kept, new):
                    kept.copy_(new)

    events["recorded"] += 1
    return again


def _share(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _count(event: str) -> None:
    if _tape is not None:
        raise RuntimeError(f"{event}: not permitted while work is recorded")
    events[event] += 1


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, OnDevice) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
    asked = kwargs.get("device")
    to_device = asked is not None and torch.device(asked).type == DEVICE.type
    if name == "aten::_to_copy" and asked is not None:
        if there and not to_device:
            _count("read")
        if here and to_device:
            _count("sent")
    elif name == "aten::copy_":
        if here and there:
            _count("sent" if isinstance(args[0], OnDevice) else "read")
    elif there and here:
        if name not in _TAKE_INDICES or not isinstance(args[0], OnDevice):
            shapes = [(type(tensor).__name__, tuple(tensor.shape)) for tensor in tensors]
            raise RuntimeError(f"{name}: tensors on two devices, {shapes}")
        _count("sent")
    if there and name in _READS:
        _count("read")
    if asked is not None:
        kwargs = {**kwargs, "device": _CPU}
    plain_args, plain_kwargs = tree_map(_raw, args), tree_map(_raw, kwargs)
    if _tape is not None:
        _remember_what_changes(func, plain_args, plain_kwargs)
    output = func(*plain_args, **plain_kwargs)
    if _tape is not None:
        _tape.append((func, plain_args, plain_kwargs, output))
    known = {id(tensor.raw): tensor for tensor in there}
    wraps = to_device or (bool(there) and asked is None)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        found = known.get(id(value))
        if found is None and wraps:
            found = OnDevice(value)
        return value if found is None else found

    return tree_map(wrapped, output)


def _remember_what_changes(func: Any, args: Any, kwargs: Any) -> None:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        for tensor in tree_leaves(given):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                copy = torch.empty(0, dtype=tensor.dtype)
                copy.set_(storage.clone())
                _undo.setdefault(storage._cdata, (tensor, copy))


class _Everything(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """``torch.tensor`` fills the device's memory below the level at which operations are seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and asked is not None:
            made = torch.tensor(args[0], **{**kwargs, "device": _CPU})
            if torch.device(asked).type == DEVICE.type:
                _count("sent")
                return OnDevice(made)
            return made
        return func(*args, **kwargs)


def _empty_strided(
    size: Any,
    stride: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
) -> OnDevice:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _count("sent" if isinstance(target, OnDevice) else "read")
    _raw(target).copy_(_raw(source))
    return target


# What torch does itself for an index that is a Python list.
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
