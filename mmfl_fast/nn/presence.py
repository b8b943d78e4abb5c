"""What can be told about the modalities of a batch before computing anything."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch
from torch import Tensor

from mmfl_fast.kernels.values import are_known, are_recorded, surely_all


def surely_absent(present: Tensor) -> bool:
    """Whether no row of ``present`` ``[B]`` is True, and that can be told for free.

    It cannot under ``torch.func``, which hides values, nor on a GPU, which would have to be waited for. In a
    step that is recorded for many batches it can where no row of the client has the modality.
    """
    return surely_all(present, False)


def surely_complete(present: Tensor) -> bool:
    """Whether all of ``present`` ``[B, M]`` is True, and that can be told for free.

    In a step that is recorded for many batches it can where every row of the client has all modalities; rows
    labelled -100 that fill up a batch then count as complete, too.
    """
    return surely_all(present, True)


def known_rows(mask: Tensor) -> Tensor | None:
    """Where ``mask`` ``[B]`` is True, int64, or None if that cannot be told for free.

    A step that is recorded for many batches has the same rows in all of them: it has no native form unless
    the mask is made without looking at the batch.
    """
    told = mask.device.type == "cpu" and (are_known(mask) or are_recorded(mask))
    return mask.nonzero().flatten() if told else None


def named(names: Iterable[str], kept: Container[str] | None, device: torch.device) -> Tensor:
    """Which of the names are kept, bool ``[M]``; None keeps all.

    It is filled where it lies: what is copied to a GPU in a step keeps the step from being recorded there.
    """
    filled = (torch.full((1,), kept is None or name in kept, device=device) for name in names)
    return torch.cat(list(filled))
