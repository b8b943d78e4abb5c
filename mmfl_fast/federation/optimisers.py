"""Local optimisers: elementwise, so the same code steps one client or a stack of clients."""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015), with decoupled weight decay as ``torch.optim.AdamW``.

    Attributes:
        learning_rate: step size.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        epsilon: added to the root of the latter.
        weight_decay: share of a parameter, times the learning rate, that a step takes away.
        cosine_period: steps in which the learning rate falls to 0 as half a cosine, and in as many rises
            again (``torch.optim.lr_scheduler.CosineAnnealingLR``); None keeps it.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    cosine_period: int | None = None

    def slots(self, parameters: Sequence[Tensor]) -> Slots:
        """Both means, starting at zero, and the steps taken.

        Steps are counted along the first axis, which in a stack is the client.
        """
        means = [torch.zeros_like(p) for p in parameters]
        squares = [torch.zeros_like(p) for p in parameters]
        return [means, squares, [p.new_zeros(p.shape[:1]) for p in parameters]]

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], slots: Slots) -> None:
        """Take one step in place."""
        means, squares, steps = slots
        torch._foreach_lerp_(means, list(gradients), 1 - self.beta1)
        torch._foreach_mul_(squares, self.beta2)
        torch._foreach_addcmul_(squares, list(gradients), list(gradients), 1 - self.beta2)
        # The same for all tensors of as many axes and as long a first one.
        shapes = [(*n.shape, *[1] * (p.dim() - n.dim())) for p, n in zip(parameters, steps, strict=True)]
        of_shape = dict(zip(shapes, steps, strict=True))
        factors = {shape: self._factors(count.reshape(shape)) for shape, count in of_shape.items()}
        kept, rates, mean_shares, square_shares = zip(*(factors[shape] for shape in shapes), strict=True)
        if self.weight_decay:
            torch._foreach_mul_(list(parameters), kept)
        spread = torch._foreach_div(squares, square_shares)
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, self.epsilon)
        way = torch._foreach_mul(means, rates)
        torch._foreach_div_(way, mean_shares)
        torch._foreach_div_(way, spread)
        torch._foreach_sub_(list(parameters), way)
        torch._foreach_add_(steps, 1)

    def _factors(self, before: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """After so many steps: what decay leaves, the learning rate, and how much of a whole each mean is."""
        rate = torch.full_like(before, self.learning_rate)
        if self.cosine_period is not None:
            rate *= (1 + torch.cos(before * (math.pi / self.cosine_period))) / 2
        kept = 1 - rate * self.weight_decay
        return kept, rate, 1 - self.beta1 ** (before + 1), 1 - self.beta2 ** (before + 1)


def clip_gradients(gradients: Sequence[Tensor], largest_norm: float) -> list[Tensor]:
    """Scale the gradients of one client so that their common Euclidean norm is at most ``largest_norm``."""
    norm = sum((g.square().sum() for g in gradients), start=gradients[0].new_zeros(())).sqrt()
    factor = (largest_norm / norm).clamp(max=1.0)
    return [g * factor for g in gradients]
