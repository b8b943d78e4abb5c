"""Arguments of the ops as tensors, with errors that name them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGER = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)

# Of Python and NumPy.
WHOLE_NUMBER = (int, np.integer)
REAL_NUMBER = (*WHOLE_NUMBER, float, np.floating)


def describe(value: Any) -> str:
    """Say what came, for an error message."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)} on {value.device}"
    if isinstance(value, (int, float, str)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {list(value.shape)}"
    return type(value).__name__


def is_floating(tensor: Tensor) -> bool:
    """Whether a tensor is dense and of one of the four floating dtypes."""
    return tensor.dtype in FLOATING and tensor.layout is torch.strided


def as_tensor(value: Any, name: str) -> Tensor:
    """Take a tensor as it is, an array of another library through DLPack.

    Raises:
        TypeError: neither, a sparse tensor, or an array of a kind that DLPack does not know.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got {describe(value)} with {value.layout}")
        return value
    if not hasattr(value, "__dlpack__"):
        raise TypeError(f"{name} must be a tensor or an array with __dlpack__; got {describe(value)}")
    if isinstance(value, np.ndarray) and (not value.flags.writeable or min(value.strides, default=0) < 0):
        # DLPack has no read-only arrays and torch no negative strides, so these are copied.
        value = value.copy()
    try:
        tensor: Tensor = torch.from_dlpack(value)  # type: ignore[attr-defined]
    except Exception as error:
        # Every library has its own errors for what DLPack cannot describe.
        raise TypeError(f"{name} cannot be taken through DLPack ({error}); got {describe(value)}") from error
    return tensor


def as_floating(value: Any, name: str) -> Tensor:
    """Do the same for one of the four floating dtypes.

    Raises:
        TypeError: another dtype, or no array.
    """
    if isinstance(value, Tensor) and is_floating(value):
        return value
    tensor = as_tensor(value, name)
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16; got {describe(tensor)}")
    return tensor


def as_labels(value: Any, name: str) -> Tensor:
    """Do the same for class numbers, as int64.

    Raises:
        TypeError: not an integer dtype, or no array.
    """
    tensor = as_tensor(value, name)
    if tensor.dtype not in INTEGER:
        raise TypeError(f"{name} must be integers; got {describe(tensor)}")
    return tensor if tensor.dtype is torch.int64 else tensor.to(torch.int64)


def as_real(value: Any, name: str, device: torch.device) -> Tensor:
    """Do the same for a few real numbers, on ``device``; a sequence of them will do and becomes float64.

    Raises:
        TypeError: no real numbers.
        ValueError: a tensor without values for one with them.
    """
    if not isinstance(value, Tensor) and not hasattr(value, "__dlpack__"):
        try:
            if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
                # Stacked, they keep their gradients.
                value = torch.stack([torch.as_tensor(item, dtype=torch.float64) for item in value])
            else:
                value = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be numbers; got {describe(value)} ({error})") from error
    tensor = as_tensor(value, name)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real numbers; got {describe(tensor)}")
    if tensor.device == device:
        return tensor
    if tensor.is_meta:
        raise ValueError(f"{name} must have values beside rows on {device}; got {describe(tensor)}")
    return tensor.to(device)


def check_same_device(**tensors: Tensor | None) -> None:
    """Refuse tensors on different devices.

    Raises:
        ValueError: names each argument with its device.
    """
    found = [tensor.device for tensor in tensors.values() if tensor is not None]
    if found.count(found[0]) != len(found):
        devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"tensors must be on one device; got {listed}")
