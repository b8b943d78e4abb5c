"""``prototype_loss`` through the contrastive loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfl_fast import ops

from .registry import EXTRA_MEMORY, TIME, Calls, Case, Target, at_most, memory_over, times_faster

CROSS_ENTROPY, LOGSUMEXP = "cross_entropy of cosines", "logsumexp of cosines"
CHUNKS, LINEAR = "cross_entropy in chunks of rows", "F.linear_cross_entropy, chunked"
COMPILED = "torch.compile(cross_entropy of cosines)"
# Newer than the oldest torch that is supported.
_LINEAR = (LINEAR,) if hasattr(torch.nn, "LinearCrossEntropyOptions") else ()

_TEMPERATURE = 0.1
_CHUNK = 4096

_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _unit(x: Tensor) -> Tensor:
    # A product with the reciprocal takes less time, both ways, than F.normalize.
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * length.clamp_min(1e-12).reciprocal()


def _weights(prototypes: Tensor) -> Tensor:
    # The temperature goes to the C x D side, not to the N x C logits.
    return _unit(prototypes) / _TEMPERATURE


def _cross_entropy(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    logits = _unit(features) @ _weights(prototypes).mT
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _logsumexp(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    logits = _unit(features) @ _weights(prototypes).mT
    return (logits.logsumexp(dim=-1) - logits.gather(-1, labels[..., None]).squeeze(-1)).mean()


def _linear_cross_entropy(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(_unit(features), _weights(prototypes), labels, options=options)


@cache
def _compiled() -> _Loss:
    compiled: _Loss = torch.compile(_cross_entropy, dynamic=False)
    return compiled


@torch.enable_grad()
def _gradients(loss: _Loss, features: Tensor, labels: Tensor, prototypes: Tensor) -> tuple[Tensor, ...]:
    leaves = features.detach().requires_grad_(), prototypes.detach().requires_grad_()
    return torch.autograd.grad(loss(leaves[0], labels, leaves[1]), leaves)


def _gradients_in_chunks(features: Tensor, labels: Tensor, prototypes: Tensor) -> tuple[Tensor, ...]:
    feature_gradient, prototype_gradient = torch.empty_like(features), torch.zeros_like(prototypes)
    for start in range(0, len(features), _CHUNK):
        rows = slice(start, start + _CHUNK)
        share = len(labels[rows]) / len(labels)
        parts = _gradients(_cross_entropy, features[rows], labels[rows], prototypes)
        feature_gradient[rows] = parts[0].mul_(share)
        prototype_gradient.add_(parts[1], alpha=share)
    return feature_gradient, prototype_gradient


_FORMS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    CROSS_ENTROPY: lambda *tensors: _gradients(_cross_entropy, *tensors),
    LOGSUMEXP: lambda *tensors: _gradients(_logsumexp, *tensors),
    CHUNKS: _gradients_in_chunks,
    LINEAR: lambda *tensors: _gradients(_linear_cross_entropy, *tensors),
    COMPILED: lambda *tensors: _gradients(_compiled(), *tensors),
}


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    # Each with its own largest element as unit, so that neither hides behind the other.
    return torch.cat([(g / g.abs().max()).flatten() for g in gradients])


def _build_gradients(
    clients: int, rows: int, dims: int, classes: int, baselines: tuple[str, ...], memory: bool
) -> Calls:
    lead = (clients,) if clients else ()
    features, prototypes = torch.randn(*lead, rows, dims), torch.randn(*lead, classes, dims)
    labels = torch.randint(0, classes, (*lead, rows))
    tensors = features, labels, prototypes
    return Calls(
        ours=lambda: _gradients(ops.prototype_contrastive_loss, *tensors),
        baselines={name: partial(_FORMS[name], *tensors) for name in baselines},
        exact=lambda: _flat(_gradients(_cross_entropy, features.double(), labels, prototypes.double())),
        result=_flat,
        avoided=rows * classes * features.itemsize if memory else 0,
    )


def _forward_backward(
    clients: int,
    rows: int,
    dims: int,
    classes: int,
    baselines: tuple[str, ...],
    *targets: Target,
    memory: bool = False,
) -> Case:
    many = f"{clients} clients of " if clients else ""
    return Case(
        name=f"prototype_contrastive_loss fwd+bwd {many}N={rows} D={dims} C={classes}",
        primitive="prototype_loss",
        build=_build_gradients,
        arguments={
            "clients": clients,
            "rows": rows,
            "dims": dims,
            "classes": classes,
            "baselines": baselines,
            "memory": memory,
        },
        targets=targets,
        tolerance=1e-5,
    )


def _build_forward(rows: int, dims: int, classes: int) -> Calls:
    features, prototypes = torch.randn(rows, dims), torch.randn(classes, dims)
    labels = torch.randint(0, classes, (rows,))
    return Calls(
        ours=lambda: ops.prototype_contrastive_loss(features, labels, prototypes),
        baselines={
            CROSS_ENTROPY: lambda: _cross_entropy(features, labels, prototypes),
            LOGSUMEXP: lambda: _logsumexp(features, labels, prototypes),
        },
        exact=lambda: _cross_entropy(features.double(), labels, prototypes.double()),
    )


def _forward(rows: int, dims: int, classes: int, *targets: Target, label: str = "", repeats: int = 1) -> Case:
    return Case(
        name=f"prototype_contrastive_loss forward N={rows} D={dims} C={classes}{label}",
        primitive="prototype_loss",
        build=_build_forward,
        arguments={"rows": rows, "dims": dims, "classes": classes},
        targets=targets,
        repeats=repeats,
    )


def _tiny(*targets: Target) -> Case:
    return _forward(4, 8, 3, *targets, label=" (overhead)", repeats=100)


_PLAIN = CROSS_ENTROPY, LOGSUMEXP


def _at_most_of_plain(limit: float) -> tuple[Target, ...]:
    return tuple(at_most(limit, name) for name in _PLAIN)


CASES = (
    _forward_backward(0, 4096, 384, 100, _PLAIN, *_at_most_of_plain(0.6)),
    _forward_backward(64, 64, 128, 10, _PLAIN, *_at_most_of_plain(0.3)),
    _forward_backward(
        0,
        16384,
        256,
        1000,
        (*_PLAIN, CHUNKS, *_LINEAR),
        *_at_most_of_plain(0.7),
        at_most(0.1, EXTRA_MEMORY),
        memory=True,
    ),
    _forward(16384, 256, 1000),
    _tiny(at_most(8, TIME)),
)

_FEDERATED = times_faster(4, CROSS_ENTROPY), times_faster(4, LOGSUMEXP), times_faster(1.5, COMPILED)
_LARGE = (CHUNKS, *_LINEAR)

GPU_CASES = (
    _forward_backward(0, 64, 128, 10, (*_PLAIN, COMPILED), *_FEDERATED),
    _forward_backward(0, 1024, 256, 100, (*_PLAIN, COMPILED), *_FEDERATED),
    _forward_backward(0, 4096, 512, 1000, (*_PLAIN, COMPILED), *_FEDERATED),
    _forward_backward(1000, 64, 128, 10, (*_PLAIN, COMPILED), *_FEDERATED),
    _forward_backward(1000, 256, 256, 100, (*_PLAIN, COMPILED), *_FEDERATED),
    _forward_backward(
        0,
        32768,
        256,
        16384,
        (CROSS_ENTROPY, *_LARGE),
        *(at_most(1, name) for name in _LARGE),
        *(at_most(1, memory_over(name)) for name in _LARGE),
        memory=True,
    ),
    _tiny(),
)
