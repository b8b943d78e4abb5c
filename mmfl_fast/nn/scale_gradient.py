"""Values that pass unchanged while their gradients do not."""

from __future__ import annotations

from torch import Tensor


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """``x`` itself, with the gradient times ``factor``.

    Args:
        x: any tensor.
        factor: a number, or a tensor that broadcasts to ``x``; negative, it reverses the gradient (Ganin and
            Lempitsky 2015). Its own gradient is 0.
    """
    return x.detach() + factor * (x - x.detach())
