"""One step of a client as the flat list of torch calls that it comes down to, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.client_step.instructions import VALUE_SEEN, NotCoveredError
from mmfl_fast.kernels.values import hidden_values

_READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)


@dataclass(frozen=True)
class Call:
    """One call of a torch operator, with the tensors it took and made."""

    function: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    result: Any


@dataclass(frozen=True)
class Recording:
    """What happened in a step.

    Attributes:
        calls: in order.
        loss: 0-dim.
        gradients: of the loss, in the order of the leaves.
        asked: False, True, or both: whether the loss asked what ``false`` and what ``true`` tell.
    """

    calls: Sequence[Call]
    loss: Tensor
    gradients: Sequence[Tensor]
    asked: Set[bool]


def record(
    loss: Callable[[], Tensor],
    leaves: Sequence[Tensor],
    false: Sequence[Tensor] = (),
    true: Sequence[Tensor] = (),
) -> Recording:
    """Evaluate a loss and its gradient, and write down every operator below autograd and ``torch.func``.

    Args:
        loss: gives a scalar that depends on ``leaves``.
        leaves: tensors that require gradients.
        false: tensors that hold nothing but False in every batch that the recording is for.
        true: likewise nothing but True, but for rows that fill up a batch.

    Raises:
        NotCoveredError: the loss takes the numbers out of a tensor.
    """
    # Ops that are kernels elsewhere come down to operators of torch.
    with (
        use_backend("reference"),
        hidden_values(false, true) as hidden,
        _Recorder() as recorder,
        _Blindfold(),
    ):
        value = loss()
        # Without a graph of the gradient autograd would add some of its parts in place.
        gradients = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
    return Recording(recorder.calls, value.detach(), [g.detach() for g in gradients], hidden.asked)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch loads its compiler, which takes a second.
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        result = _channels_last(func, func(*args, **(kwargs or {})))
        self.calls.append(Call(func, args, kwargs or {}, result))
        return result


class _Blindfold(TorchFunctionMode):
    """Refuses what reads the numbers of a tensor without a call of an operator."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func in _READS:
            raise NotCoveredError(VALUE_SEEN)
        return func(*args, **(kwargs or {}))


def _channels_last(function: torch._ops.OpOverload, result: Any) -> Any:
    """Pictures that convolutions make, with the channels of a pixel side by side.

    So native code has them, and what follows keeps the order of its input. Torch itself keeps that of the
    convolution's input, which is mostly another.
    """
    if function is torch.ops.aten.convolution.default:
        return _reordered(result)
    if function is torch.ops.aten.convolution_backward.default:
        return (_reordered(result[0]), *result[1:])
    return result


def _reordered(pictures: Tensor | None) -> Tensor | None:
    if pictures is None or pictures.dim() != 4:
        return pictures
    return pictures.contiguous(memory_format=torch.channels_last)
