"""Algebra on the small results of primitives, in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmfl_fast.kernels.prototype_loss.labels import IGNORED


def cosine(products: Tensor, row_mean: Tensor, negligible: float) -> Tensor:
    """Normalise a Gram matrix.

    Args:
        products: [K, K] float64. What is NaN stays NaN.
        row_mean: [K] float64, what was subtracted from the elements of a row.
        negligible: squared norms up to this times ``row_mean**2`` have no direction: their similarity is 0
            to others and 1 to themselves.

    Returns:
        [K, K] in [-1, 1] with a diagonal of exactly 1.
    """
    defined = ~torch.isnan(products)
    # Masked before the arithmetic, here and below, so that no gradient passes through an undefined value.
    products = torch.where(defined, products, 0.0)
    squares = products.diagonal()
    directed = squares > (negligible * row_mean.detach().square()).nan_to_num(0.0)
    squares = torch.where(directed, squares, 1.0)
    norms = squares.sqrt()
    # Two quotients that are 1 to the last bit for equal rows; the product of the norms need not be.
    high, low = torch.maximum(norms[:, None], norms), torch.minimum(norms[:, None], norms)
    sigma = (products / torch.maximum(squares[:, None], squares) / (low / high)).clamp(-1, 1)
    sigma = torch.where(directed[:, None] & directed, sigma, 0.0)
    return torch.where(defined, torch.where(_diagonal(products), 1.0, sigma), torch.nan)


def angular(products: Tensor, row_mean: Tensor, negligible: float) -> Tensor:
    """``1 - arccos(sigma) / pi`` of the :func:`cosine`; the infinite derivative at 1 and -1 is taken as 0."""
    sigma = cosine(products, row_mean, negligible)
    inside = sigma.abs() < 1
    angle = torch.arccos(torch.where(inside, sigma, 0.0))
    share = torch.where(inside, 1 - angle / math.pi, (sigma > 0).to(sigma.dtype))
    return torch.where(torch.isnan(sigma), torch.nan, share)


def sq_distance(products: Tensor) -> Tensor:
    """``p_ii + p_jj - 2 p_ij``: squared distances from the inner products of any vectors, [K, K]."""
    squares = products.diagonal()
    distance = (squares[:, None] + squares - (products + products.mT)).clamp(min=0)
    return torch.where(_diagonal(products) & ~torch.isnan(products), 0.0, distance)


def alignment(products: Tensor, noise: Tensor | float) -> Tensor:
    """``p_ij / sqrt(p_ii p_jj)``, 0 beside a diagonal element up to ``noise``; the diagonal is exactly 1.

    Args:
        products: [K, K] float64. What is NaN stays NaN.
        noise: [K] or a number.
    """
    defined = ~torch.isnan(products)
    products = torch.where(defined, products, 0.0)
    variation = products.diagonal()
    # What is infinite has the scale 0 and no gradient.
    scale = torch.where(variation > noise, variation, torch.inf).rsqrt()
    similarity = torch.where(_diagonal(products), 1.0, products * scale[:, None] * scale)
    return torch.where(defined, similarity, torch.nan)


def counted_mean(losses: Tensor, labels: Tensor, class_mask: Tensor | None) -> Tensor:
    """Mean of the losses, [B, N] or [N], whose row is :func:`counted`; 0 if none is."""
    return losses.sum() / counted(labels, class_mask).sum().clamp(min=1)


def counted(labels: Tensor, class_mask: Tensor | None) -> Tensor:
    """Which rows count, bool in the shape of the labels.

    Args:
        labels: [B, N] or [N]; -100 does not count.
        class_mask: [M, C] or [C] bool, the classes that count; or None.
    """
    labelled = labels != IGNORED
    if class_mask is None:
        return labelled
    taken = class_mask.expand(*labels.shape[:-1], class_mask.shape[-1])
    return labelled & taken.gather(-1, torch.where(labelled, labels, 0))


def _diagonal(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=torch.bool, device=like.device)
