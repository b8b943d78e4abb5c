"""When a call may go straight to a CPU kernel.

Torch's dispatcher costs a Python-implemented op more than a small kernel takes, and a list of thousands of
tensors more still.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PLAIN = {Tensor, torch.nn.Parameter}


def needs_no_dispatch(arguments: tuple[Any, ...]) -> bool:
    """Whether nobody but the CPU kernel has to see a call: no gradient, mode, subclass, tracer or profiler.

    The dispatcher also resolves lazily negated tensors.

    Args:
        arguments: of an op; the tensors among them, alone or in lists, are on one device.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, list):
            tensors += argument
        elif isinstance(argument, Tensor):
            tensors.append(argument)
    return (
        _PLAIN.issuperset(map(type, tensors))
        and tensors[0].is_cpu
        and not any(map(Tensor.is_neg, tensors))
        and not (torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors]))  # noqa: C419
    )
