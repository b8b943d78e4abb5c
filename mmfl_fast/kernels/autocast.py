"""Primitives choose their own dtypes, also inside ``torch.autocast``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

_Result = TypeVar("_Result")


def without_autocast(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Keep autocast from rounding the operands of matrix products inside ``function``.

    The native kernels never see autocast; this is for plain torch expressions: references and gradients.
    """

    @wraps(function)
    def call(*arguments: Any) -> _Result:
        device = _device_type(arguments)
        if device is None or not _autocast_is_on(device):
            return function(*arguments)
        with torch.autocast(device, enabled=False):
            return function(*arguments)

    return call


def _autocast_is_on(device: str) -> bool:
    # "meta" has no autocast and cannot be asked whether it is on.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _device_type(arguments: Any) -> str | None:
    """Of the first tensor among the arguments, or in a list among them."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            return argument.device.type
        if isinstance(argument, (list, tuple)):
            device = _device_type(argument)
            if device is not None:
                return device
    return None
