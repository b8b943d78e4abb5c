"""Steps whose gradient is one step, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels.one_step.algebra import counted
from mmfl_fast.kernels.prototype_loss import native, op
from mmfl_fast.kernels.prototype_loss.client_axis import with_client_axis


class _MeanPrototypeLoss(torch.autograd.Function):
    """:func:`mmfl_fast.kernels.one_step.mean_prototype_loss` as one node of the graph, in place of six."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        class_mask: Tensor | None,
        *options: Any,
    ) -> Tensor:
        count = counted(labels, class_mask).sum().clamp(min=1)
        tensors = features, labels, prototypes, class_mask
        loss, log_sum = native.prototype_loss(*with_client_axis(*tensors), *options)
        # Inputs as they came: through what is made of them here no second derivative would be missed.
        ctx.save_for_backward(loss, log_sum, count, *tensors)
        ctx.options = options
        return loss.sum() / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        loss, log_sum, count, *tensors = ctx.saved_tensors
        features, _, prototypes, _ = tensors
        upstream = (gradients[0] / count).expand(loss.shape)
        d_features, d_prototypes = op.prototype_loss_backward(
            upstream, loss, log_sum, *with_client_axis(*tensors), *ctx.options
        )
        none = (None for _ in ctx.options)
        return d_features.view(features.shape), None, d_prototypes.view(prototypes.shape), None, *none


def mean_prototype_loss(*arguments: Any) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.mean_prototype_loss`."""
    # As torch's own `apply`, which reads the signature of forward anew at every call.
    mean: Tensor = super(torch.autograd.Function, _MeanPrototypeLoss).apply(*arguments)  # type: ignore[no-untyped-call]
    return mean
