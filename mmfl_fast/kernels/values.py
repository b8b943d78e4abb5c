"""Whether the values of a tensor can be looked at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake


def are_known(tensor: Tensor) -> bool:
    """False under ``torch.compile`` and ``torch.func`` transforms, and for meta and fake tensors."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    # Asked first because is_fake unwraps every kind of tensor, which takes as long as a small kernel.
    if type(tensor) is Tensor and torch._C._len_torch_dispatch_stack() == 0:
        return not tensor.is_meta
    return not (tensor.is_meta or is_fake(tensor))
