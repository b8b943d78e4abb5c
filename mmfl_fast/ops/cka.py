"""Similarity of representations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels import one_step
from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.one_step import algebra
from mmfl_fast.kernels.rows import compute_dtype
from mmfl_fast.kernels.unit_rows import unit_rows
from mmfl_fast.ops.precision import Precision, allows_tf32
from mmfl_fast.ops.tensors import as_floating, describe


def linear_cka(
    features: Tensor | Sequence[Tensor], *, debiased: bool = False, precision: Precision = "fp32"
) -> Tensor:
    """Linear centred kernel alignment of all pairs of K representations of the same n items.

    Rows are first scaled to unit length, as FedMVP's server does (papers.md 3.5), then columns are centred:
    with ``Y_i`` the result and ``K_i = Y_i Y_i^T``, ``CKA_ij = tr(K_i K_j) / sqrt(tr(K_i K_i) tr(K_j K_j))``.
    Kornblith et al. (2019) leave the rows as they are; scale rows to a common length to compare.

    A zero row stays zero. A representation without variation, all rows equal, has CKA 0 to the others;
    one counts as such when its centred rows are no longer than 8 roundings of the arithmetic. The diagonal is
    exactly 1. A representation that holds a NaN or an infinity gives NaN in its own row and column.

    Args:
        features: [K, n, d], or K tensors [n, d_i] of one dtype and device; any strides, not copied.
        debiased: use the unbiased estimator of HSIC (Song et al. 2012, Eq. 5; Nguyen et al. 2021) in all
            three places. Its expectation does not grow with d / n; values may be negative or exceed 1.
            Needs n >= 4.
        precision: of float32 products on a GPU, ``"fp32"`` or ``"tf32"``, see
            :data:`mmfl_fast.ops.precision.Precision`.

    Returns:
        [K, K] float64, symmetric; in [0, 1] unless ``debiased``. Differentiable, with finite gradients.

    Raises:
        TypeError: not floating tensors, or tensors of different dtypes.
        ValueError: wrong shapes, devices that differ, n < 4 with ``debiased``, or an unknown ``precision``.
    """
    blocks = _blocks(features)
    rows = blocks[0].shape[1]
    if debiased and rows < 4:
        raise ValueError(f"features must have at least 4 rows for debiased=True; got {rows}")
    tf32 = allows_tf32(precision)
    epsilon = torch.finfo(compute_dtype([blocks[0].dtype])).eps
    noise = (rows * (8 * epsilon) ** 2) ** 2
    if not debiased:
        return one_step.alignment(blocks, tf32, noise)
    products = cross_gram_sq(blocks, mean_columns=True, normalise_rows=True, tf32=tf32)
    traces = products.diagonal().detach()
    unbiased = _unbiased(products, _squared_row_lengths(blocks, torch.isfinite(traces)))
    return algebra.alignment(unbiased, noise + 16 * epsilon * traces)


def _blocks(features: Any) -> list[Tensor]:
    """Check the features and give them as blocks [k, n, d_i]."""
    if not isinstance(features, (list, tuple)):
        stacked = as_floating(features, "features")
        if stacked.dim() != 3 or 0 in stacked.shape:
            raise ValueError(f"features must be [K, n, d] with no empty axis; got {describe(stacked)}")
        return [stacked]
    if not features:
        raise ValueError("features must hold at least one tensor; got an empty sequence")
    views = [as_floating(view, f"features[{i}]") for i, view in enumerate(features)]
    first = views[0]
    for i, view in enumerate(views):
        if view.dim() != 2 or 0 in view.shape or view.shape[0] != first.shape[0]:
            raise ValueError(
                f"features[{i}] must be [n, d] with the rows of features[0]; got {describe(view)} "
                f"beside {describe(first)}"
            )
        if view.dtype != first.dtype:
            raise TypeError(f"features must share a dtype; got {view.dtype} at {i} and {first.dtype} at 0")
        if view.device != first.device:
            raise ValueError(
                f"features must share a device; got {view.device} at {i} and {first.device} at 0"
            )
    return [view.unsqueeze(0) for view in views]


def _squared_row_lengths(blocks: Sequence[Tensor], finite: Tensor) -> Tensor:
    """Square the lengths of the prepared rows, [K, n]; 0 for a representation that is not finite."""
    lengths = []
    for block, valid in zip(blocks, finite.split([block.shape[0] for block in blocks]), strict=True):
        units, _ = unit_rows(torch.where(valid[:, None, None], block, 0.0).double())
        lengths.append((units - units.mean(dim=1, keepdim=True)).square().sum(dim=2))
    return torch.cat(lengths)


def _unbiased(products: Tensor, diagonals: Tensor) -> Tensor:
    """Unbiased HSIC times n (n - 3), from ``<K_i, K_j>`` and the diagonals of the centred K.

    The estimator takes sums over K without its diagonal. It does not change when a vector is added to all
    rows and columns of K, so it may be evaluated on the centred K, whose row sums are 0: what is left of a
    row's sum is minus its diagonal element.
    """
    n = diagonals.shape[1]
    traces = diagonals.sum(dim=1)
    return (
        products - n / (n - 2) * (diagonals @ diagonals.mT) + traces[:, None] * traces / ((n - 1) * (n - 2))
    )
