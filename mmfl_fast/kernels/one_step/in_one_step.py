"""When an op may run in one step."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from mmfl_fast.kernels.backend import chosen, native_on_cpu
from mmfl_fast.kernels.direct_call import plain_tensors, records_gradient

_Expression = TypeVar("_Expression", bound=Callable[..., Any])


def in_one_step(
    primitive: str,
    step: Callable[..., Any],
    differentiable: Callable[..., Any] | None = None,
    on_gpu: Callable[..., Any] | None = None,
) -> Callable[[_Expression], _Expression]:
    """Run ``step`` in place of the decorated expression where nobody sees the difference.

    That is without gradients, transforms, modes, subclasses, tracers or profilers, see
    :func:`mmfl_fast.kernels.direct_call.plain_tensors`.

    Args:
        primitive: that the expression stands on. Where not its C++ kernel is chosen, see
            :func:`mmfl_fast.kernels.backend.chosen`, the expression is.
        step: gives the same from the same arguments on a CPU.
        differentiable: gives the same there, and its gradients; None leaves those to the expression.
        on_gpu: gives the same on a GPU; None leaves that to the expression.
    """

    def decorate(expression: _Expression) -> _Expression:
        @wraps(expression)
        def call(*arguments: Any) -> Any:
            tensors = plain_tensors(arguments)
            if not tensors:
                there = plain_tensors(arguments, on_gpu=True) if on_gpu is not None else []
                if there and not records_gradient(there) and chosen(primitive, there[0].device) == "native":
                    return on_gpu(*arguments)  # type: ignore[misc]
                return expression(*arguments)
            if not native_on_cpu(primitive):
                return expression(*arguments)
            if records_gradient(tensors):
                return (differentiable or expression)(*arguments)
            return step(*arguments)

        return cast(_Expression, call)

    return decorate
