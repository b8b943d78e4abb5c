"""When a call may go straight to a CPU kernel.

Torch's dispatcher costs a Python-implemented op more than a small kernel takes, and a list of thousands of
tensors more still.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

# Under names of their own: to look them up in torch takes as long as to call them.
_compiling = torch.compiler.is_compiling
_transforms = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_profiled = torch._C._autograd._profiler_enabled
_PLAIN = {Tensor, torch.nn.Parameter}
# Asked first, because isinstance(x, Tensor) is slow for what is none.
_NUMBERS = {bool, int, float, type(None)}

_requires_grad = attrgetter("requires_grad")


def plain_tensors(arguments: tuple[Any, ...], on_gpu: bool = False) -> list[Tensor]:
    """The tensors of a call that nobody has to see but autograd and the kernel; else none.

    Torch's dispatcher is for all others: transforms, modes, subclasses, tracers, profilers, lazily negated
    tensors.

    Args:
        arguments: of an op; the tensors among them, alone or in lists, are on one device.
        on_gpu: whether it is to be a GPU, instead of the CPU.
    """
    if _compiling() or _transforms() or _modes() or _tracing() is not None or _profiled():
        return []
    tensors: list[Tensor] = []
    for argument in arguments:
        if type(argument) is list:
            tensors += argument
        elif type(argument) not in _NUMBERS:
            tensors.append(argument)
    there = tensors[0].is_cuda if on_gpu else tensors[0].is_cpu
    plain = there and _PLAIN.issuperset(map(type, tensors)) and not any(map(Tensor.is_neg, tensors))
    return tensors if plain else []


def records_gradient(tensors: list[Tensor]) -> bool:
    """Whether autograd has to know what is done with tensors."""
    return torch.is_grad_enabled() and any(map(_requires_grad, tensors))
