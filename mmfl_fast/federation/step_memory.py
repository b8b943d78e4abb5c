"""What a client takes of a GPU's memory while it trains in a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import ClientState, Phase
from mmfl_fast.federation.client_stack import ClientStack


def bytes_per_client(client: Client, start: ClientState, phases: Sequence[Phase]) -> int:
    """Most bytes of tensors that are there at once, found by a step of each phase on the client's device.

    They hold its part of the stack, the optimiser's memory, the activations of the largest batch, the
    gradients, and the copy of its parameters that the round returns.
    """
    live = _LiveBytes()
    with live:
        stack = ClientStack(1, client.task, start)
        stack.load([start])
        for phase in {phase.name: phase for phase in phases}.values():
            rows = client.train_rows[: phase.batch_size].to(client.task.labels.device)
            stack.step(phase, rows.unsqueeze(0), round_index=0)
    return live.most + sum(t.nbytes for t in start.values())


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of what operators make, as long as it is there.

    Attributes:
        most: at once, so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: int = 0
        self._there: dict[int, tuple[StorageWeakRef, int]] = {}

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
        known = {_place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        self._there = {p: (ref, size) for p, (ref, size) in self._there.items() if not ref.expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _place(tensor) not in known | self._there.keys():
                storage = tensor.untyped_storage()
                self._there[_place(tensor)] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self._there.values()))
        return result


def _place(tensor: Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place
