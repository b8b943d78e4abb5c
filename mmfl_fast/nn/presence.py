"""What can be told about the modalities of a batch before computing anything."""

from __future__ import annotations

from torch import Tensor

from mmfl_fast.kernels.values import are_known


def surely_absent(present: Tensor) -> bool:
    """Whether no row of ``present`` ``[B]`` is True, and that can be told for free.

    It cannot under ``torch.func``, which hides values, nor on a GPU, which would have to be waited for.
    """
    return present.device.type == "cpu" and are_known(present) and not bool(present.any())
