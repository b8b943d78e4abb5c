"""What a label may be."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels.values import are_known

# A row with this label takes no part.
IGNORED = -100


def refuse(labels: Tensor, classes: int, position: int) -> None:
    """Raise the error for the label at a flat position.

    Raises:
        ValueError: always.
    """
    rows = labels.shape[-1]
    place = f"row {position % rows}"
    if labels.numel() > rows:
        place += f" of client {position // rows}"
    value = int(labels.reshape(-1)[position])
    raise ValueError(f"labels must lie in [0, {classes}) or be {IGNORED}; got {value} at {place}")


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels outside [0, classes) that are not ignored.

    Labels whose values are hidden pass, see :func:`mmfl_fast.kernels.values.are_known`.

    Raises:
        ValueError: names the value and its row.
    """
    if not are_known(labels):
        return
    outside = ((labels < 0) & (labels != IGNORED)) | (labels >= classes)
    if bool(outside.any()):
        refuse(labels, classes, int(outside.reshape(-1).to(torch.uint8).argmax()))
