"""``prototype_loss`` by the C++ kernels on the CPU and by the CUDA kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmfl_fast.kernels.cuda_call import cuda_call
from mmfl_fast.kernels.extension import _C
from mmfl_fast.kernels.prototype_loss.labels import refuse
from mmfl_fast.kernels.rows import DTYPE_CODES, compute_dtype


def _tables(
    features: Tensor, labels: Tensor, prototypes: Tensor, class_mask: Tensor | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sizes B, N, D, C, G, M, and one line per tensor: address, three strides, dtype code."""
    masks, mask_address = (0, 0) if class_mask is None else (class_mask.shape[0], class_mask.data_ptr())
    sizes = (*features.shape, prototypes.shape[1], prototypes.shape[0], masks)
    lines = (
        (features.data_ptr(), *features.stride(), DTYPE_CODES[features.dtype]),
        (labels.data_ptr(), *labels.stride(), 0, 0),
        (prototypes.data_ptr(), *prototypes.stride(), DTYPE_CODES[prototypes.dtype]),
        (mask_address, 0, 0, 0, 0),
    )
    return np.array(sizes, dtype=np.int64), np.array(lines, dtype=np.int64)


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
    sizes, tensors = _tables(features, labels, prototypes, class_mask)
    bad_label = _C.prototype_loss(
        sizes,
        tensors,
        temperature,
        normalise,
        dtype == torch.float64,
        loss.data_ptr(),
        log_sum.data_ptr(),
        torch.get_num_threads(),
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
    sizes, tensors = _tables(features, labels, prototypes, class_mask)
    upstream = (loss_gradient.data_ptr(), *loss_gradient.stride(), 0, DTYPE_CODES[loss_gradient.dtype])
    _C.prototype_loss_backward(
        sizes,
        tensors,
        temperature,
        normalise,
        loss.dtype == torch.float64,
        np.array(upstream, dtype=np.int64),
        loss.data_ptr(),
        log_sum.data_ptr(),
        feature_gradient.data_ptr(),
        prototype_gradient.data_ptr(),
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
    sizes, tensors = _tables(features, labels, prototypes, class_mask)
    arguments = (sizes, tensors, temperature, normalise, dtype == torch.float64, tf32)
    call, _kept_workspace = cuda_call(device, _C.prototype_loss_cuda_workspace(*arguments))
    _C.prototype_loss_cuda(*arguments, loss.data_ptr(), log_sum.data_ptr(), *call)
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
    sizes, tensors = _tables(features, labels, prototypes, class_mask)
    upstream = (loss_gradient.data_ptr(), *loss_gradient.stride(), 0, DTYPE_CODES[loss_gradient.dtype])
    arguments = (sizes, tensors, temperature, normalise, loss.dtype == torch.float64, tf32)
    call, _kept_workspace = cuda_call(device, _C.prototype_loss_backward_cuda_workspace(*arguments))
    _C.prototype_loss_backward_cuda(
        *arguments,
        np.array(upstream, dtype=np.int64),
        loss.data_ptr(),
        log_sum.data_ptr(),
        feature_gradient.data_ptr(),
        prototype_gradient.data_ptr(),
        *call,
    )
    return feature_gradient, prototype_gradient
