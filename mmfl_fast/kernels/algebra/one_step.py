"""When a C++ function may stand for a torch expression."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor

from mmfl_fast.kernels.backend import chosen
from mmfl_fast.kernels.direct_call import plain_tensors, records_gradient

# Elements. Beyond, torch's threads save more than its calls cost.
_SMALL = 1 << 14

_Expression = TypeVar("_Expression", bound=Callable[..., Tensor])


def in_one_step(primitive: str, step: Callable[..., Tensor]) -> Callable[[_Expression], _Expression]:
    """Take ``step`` in place of the decorated expression when the first argument is small and nobody watches.

    Args:
        primitive: what the algebra belongs to. Where anything but its C++ kernel is chosen, see
            :func:`mmfl_fast.kernels.backend.chosen`, the expression is, too.
        step: gives the same on a CPU, without gradients.
    """

    def decorate(expression: _Expression) -> _Expression:
        @wraps(expression)
        def call(*arguments: Any) -> Tensor:
            tensors = plain_tensors(arguments)
            if (
                tensors
                and not records_gradient(tensors)
                and tensors[0].numel() <= _SMALL
                and chosen(primitive, tensors[0].device) == "native"
            ):
                return step(*arguments)
            return expression(*arguments)

        return cast(_Expression, call)

    return decorate
