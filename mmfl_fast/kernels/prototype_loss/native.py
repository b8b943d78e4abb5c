"""``prototype_loss`` by the C++ kernels on the CPU and by the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels.cuda_place import cuda_place
from mmfl_fast.kernels.extension import _C
from mmfl_fast.kernels.prototype_loss.labels import refuse
from mmfl_fast.kernels.rows import compute_dtype


def prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    _tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and ``log sum_c exp(z_c - max z)`` of every row, both [B, N]."""
    dtype = compute_dtype([features.dtype, prototypes.dtype])
    loss = torch.empty(labels.shape, dtype=dtype, device="cpu")
    log_sum = torch.empty_like(loss)
    class_mask = None if class_mask is None else class_mask.contiguous()
    threads = torch.get_num_threads()
    bad_label = _C.prototype_loss(
        features, labels, prototypes, class_mask, temperature, normalise, loss, log_sum, threads
    )
    if bad_label >= 0:
        refuse(labels, prototypes.shape[1], bad_label)
    return loss, log_sum


def prototype_loss_backward(
    loss_gradient: Tensor,
    loss: Tensor,
    log_sum: Tensor,
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    _tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of features [B, N, D] and prototypes [G, C, D] in their dtypes."""
    feature_gradient = torch.empty(features.shape, dtype=features.dtype, device="cpu")
    prototype_gradient = torch.empty(prototypes.shape, dtype=prototypes.dtype, device="cpu")
    loss, log_sum = loss.contiguous(), log_sum.contiguous()
    class_mask = None if class_mask is None else class_mask.contiguous()
    _C.prototype_loss_backward(
        loss_gradient,
        loss,
        log_sum,
        features,
        labels,
        prototypes,
        class_mask,
        temperature,
        normalise,
        feature_gradient,
        prototype_gradient,
        torch.get_num_threads(),
    )
    return feature_gradient, prototype_gradient


def prototype_loss_cuda(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Do as :func:`prototype_loss` on a GPU, asynchronously, on the current stream of the features' device.

    Labels are not looked at, for that would wait for the GPU: see the kernel's contract.
    """
    device = features.device
    dtype = compute_dtype([features.dtype, prototypes.dtype])
    loss = torch.empty(labels.shape, dtype=dtype, device=device)
    log_sum = torch.empty_like(loss)
    class_mask = None if class_mask is None else class_mask.contiguous()
    place = cuda_place(device)
    _C.prototype_loss_cuda(
        features, labels, prototypes, class_mask, temperature, normalise, tf32, loss, log_sum, *place
    )
    return loss, log_sum


def prototype_loss_backward_cuda(
    loss_gradient: Tensor,
    loss: Tensor,
    log_sum: Tensor,
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Do as :func:`prototype_loss_backward` on a GPU, asynchronously, on the current stream."""
    device = features.device
    feature_gradient = torch.empty(features.shape, dtype=features.dtype, device=device)
    prototype_gradient = torch.empty(prototypes.shape, dtype=prototypes.dtype, device=device)
    loss, log_sum = loss.contiguous(), log_sum.contiguous()
    class_mask = None if class_mask is None else class_mask.contiguous()
    _C.prototype_loss_backward_cuda(
        loss_gradient,
        loss,
        log_sum,
        features,
        labels,
        prototypes,
        class_mask,
        temperature,
        normalise,
        tf32,
        feature_gradient,
        prototype_gradient,
        *cuda_place(device),
    )
    return feature_gradient, prototype_gradient
