"""Local optimisers: elementwise, so the same code steps one client or a stack of clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Slots = list[list[Tensor]]


class Optimiser(Protocol):
    """Updates parameters in place; what it remembers between steps lives in ``slots``."""

    def slots(self, parameters: Sequence[Tensor]) -> Slots:
        """Fresh memory for one phase of one round, one list of tensors per slot."""

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], slots: Slots) -> None:
        """Update ``parameters`` and ``slots`` in place."""


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum and L2 weight decay, as ``torch.optim.SGD``.

    Attributes:
        learning_rate: step size.
        momentum: factor of the velocity; 0 needs no memory.
        weight_decay: L2 factor added to the gradient.
    """

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def slots(self, parameters: Sequence[Tensor]) -> Slots:
        """One velocity per parameter, starting at zero."""
        return [[torch.zeros_like(p) for p in parameters]] if self.momentum else []

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], slots: Slots) -> None:
        """Take one step in place."""
        direction = list(gradients)
        if self.weight_decay:
            direction = list(torch._foreach_add(direction, list(parameters), alpha=self.weight_decay))
        if self.momentum:
            velocity = slots[0]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, direction)
            direction = velocity
        torch._foreach_add_(list(parameters), direction, alpha=-self.learning_rate)


def clip_gradients(gradients: Sequence[Tensor], largest_norm: float) -> list[Tensor]:
    """Scale the gradients of one client so that their common Euclidean norm is at most ``largest_norm``."""
    norm = sum((g.square().sum() for g in gradients), start=gradients[0].new_zeros(())).sqrt()
    factor = (largest_norm / norm).clamp(max=1.0)
    return [g * factor for g in gradients]
