"""What the weights of a mean may be."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from mmfl_fast.kernels.values import are_known


def refuse(weights: Tensor) -> NoReturn:
    """Raise the error for weights that have no shares.

    Raises:
        ValueError: always.
    """
    for k, value in enumerate(weights.tolist()):
        if not 0 <= value < math.inf:
            raise ValueError(f"weights must be finite and not negative; weights[{k}] is {value}")
    total = weights.sum(dtype=torch.float64).item()
    raise ValueError(f"weights must have a positive sum that is finite; got {total}")


def shares(weights: Tensor) -> Tensor:
    """Weights [K] divided by their sum, in float64.

    They are checked unless their values are hidden, see :func:`mmfl_fast.kernels.values.are_known`.

    Raises:
        ValueError: a negative or non-finite weight, or a sum of 0 or infinity.
    """
    weights = weights.to(torch.float64)
    total = weights.sum()
    # NaN makes both comparisons fail.
    if are_known(weights) and not (weights.min().item() >= 0 and 0 < total.item() < math.inf):
        refuse(weights)
    return weights / total
