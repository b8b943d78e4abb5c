"""Whether the values of a tensor can be looked at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake


def are_known(tensor: Tensor) -> bool:
    """False under ``torch.compile`` and ``torch.func`` transforms, and for meta and fake tensors."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return not (tensor.is_meta or is_fake(tensor))
