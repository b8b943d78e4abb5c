"""Losses that ignore padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits ``[B, C]`` over the rows whose label is not -100; 0 if there is none.

    ``F.cross_entropy`` returns NaN for a batch of ignored rows only, which a stack of clients can hold.
    """
    counted = (labels != -100).sum().clamp(min=1)
    return F.cross_entropy(logits, labels, reduction="sum") / counted
