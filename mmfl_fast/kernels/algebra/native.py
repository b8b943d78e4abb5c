"""The algebra by C++ functions, on a CPU, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels.extension import _C


def cosine(products: Tensor, row_mean: Tensor, negligible: float) -> Tensor:
    """See :func:`mmfl_fast.kernels.algebra.cosine`."""
    products = products.contiguous()
    out = torch.empty_like(products)
    _C.cosine(products, row_mean.contiguous(), negligible, out)
    return out


def angular(products: Tensor, row_mean: Tensor, negligible: float) -> Tensor:
    """See :func:`mmfl_fast.kernels.algebra.angular`."""
    products = products.contiguous()
    out = torch.empty_like(products)
    _C.angular(products, row_mean.contiguous(), negligible, out)
    return out


def sq_distance(products: Tensor) -> Tensor:
    """See :func:`mmfl_fast.kernels.algebra.sq_distance`."""
    products = products.contiguous()
    out = torch.empty_like(products)
    _C.sq_distance(products, out)
    return out


def alignment(products: Tensor, noise: float) -> Tensor:
    """See :func:`mmfl_fast.kernels.algebra.alignment`."""
    products = products.contiguous()
    out = torch.empty_like(products)
    _C.alignment(products, noise, out)
    return out


def mean_loss(losses: Tensor, labels: Tensor, class_mask: Tensor | None) -> Tensor:
    """See :func:`mmfl_fast.kernels.algebra.mean_loss`."""
    out = losses.new_empty(())
    class_mask = None if class_mask is None else class_mask.contiguous()
    _C.mean_loss(losses.contiguous(), labels, class_mask, out)
    return out
