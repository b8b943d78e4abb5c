"""``prototype_loss`` through the contrastive loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from registry import Case, case
from torch import Tensor

from mmfl_fast import ops


def _expression(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize
    logits = unit(features, dim=-1) @ unit(prototypes, dim=-1).mT / 0.1
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


@torch.enable_grad()
def _gradients(
    loss: Callable[..., Tensor], features: Tensor, labels: Tensor, prototypes: Tensor
) -> tuple[Tensor, ...]:
    leaves = features.detach().requires_grad_(), prototypes.detach().requires_grad_()
    return torch.autograd.grad(loss(leaves[0], labels, leaves[1]), leaves)


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    # Each with its own largest element as unit, so that neither hides behind the other.
    return torch.cat([(g / g.abs().max()).flatten() for g in gradients])


def _forward_backward(name: str, clients: int | None, rows: int, dims: int, classes: int) -> Case:
    lead = () if clients is None else (clients,)
    features, prototypes = torch.randn(*lead, rows, dims), torch.randn(*lead, classes, dims)
    labels = torch.randint(0, classes, (*lead, rows))
    arguments = features, labels, prototypes
    return Case(
        name=f"prototype_contrastive_loss fwd+bwd {name}",
        ours=lambda: _gradients(ops.prototype_contrastive_loss, *arguments),
        baselines={"cross_entropy of cosines": lambda: _gradients(_expression, *arguments)},
        exact=lambda: _flat(_gradients(_expression, features.double(), labels, prototypes.double())),
        tolerance=1e-5,
        result=_flat,
    )


@case
def medium() -> Case:
    return _forward_backward("N=4096 D=384 C=100", None, 4096, 384, 100)


@case
def clients() -> Case:
    return _forward_backward("64 clients of N=64 D=128 C=10", 64, 64, 128, 10)


@case
def many_classes() -> Case:
    return _forward_backward("N=16384 D=256 C=1000", None, 16384, 256, 1000)


@case
def forward_alone() -> Case:
    features, prototypes = torch.randn(16384, 256), torch.randn(1000, 256)
    labels = torch.randint(0, 1000, (16384,))
    return Case(
        name="prototype_contrastive_loss forward N=16384 D=256 C=1000",
        ours=lambda: ops.prototype_contrastive_loss(features, labels, prototypes),
        baselines={"cross_entropy of cosines": lambda: _expression(features, labels, prototypes)},
        exact=lambda: _expression(features.double(), labels, prototypes.double()),
        tolerance=1e-6,
    )


@case
def tiny() -> Case:
    features, prototypes, labels = torch.randn(4, 8), torch.randn(3, 8), torch.tensor([0, 1, 2, 0])
    return Case(
        name="prototype_contrastive_loss N=4 D=8 C=3 (overhead)",
        ours=lambda: ops.prototype_contrastive_loss(features, labels, prototypes),
        baselines={"cross_entropy of cosines": lambda: _expression(features, labels, prototypes)},
        exact=lambda: _expression(features.double(), labels, prototypes.double()),
        tolerance=1e-6,
    )
