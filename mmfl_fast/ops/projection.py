"""Distances of linear operators and the consensus among them."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from mmfl_fast.kernels import one_step
from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.mix.weights import shares as shares_of
from mmfl_fast.kernels.one_step import algebra
from mmfl_fast.kernels.values import are_known
from mmfl_fast.ops.averaging import mix
from mmfl_fast.ops.rows import RowsLike, as_rows
from mmfl_fast.ops.tensors import REAL_NUMBER, as_floating
from mmfl_fast.ops.weights import as_matrix, as_weights

_SCALE_FLOOR = 1e-12


def projection_distance(operators: RowsLike) -> Tensor:
    """``||G_i - G_j||_F^2 = tr((G_i - G_j)^T (G_i - G_j))``: Eq. 2 of M3Fed (ACM MM 2024).

    Args:
        operators: [K, m, n], or any other form of rows that :func:`mmfl_fast.ops.gram` takes.

    Returns:
        As :func:`mmfl_fast.ops.pairwise_sq_distance`.

    Raises:
        TypeError: as :func:`mmfl_fast.ops.gram`.
        ValueError: as :func:`mmfl_fast.ops.gram`.
    """
    rows = as_rows(operators, "operators")
    return one_step.sq_distance(rows.blocks, rows.segments, rows.stacked, False)


def subspace_distance(bases: Any) -> Tensor:
    """Squared projection metric ``||U_i U_i^T - U_j U_j^T||_F^2``, the same for every basis of a subspace.

    It is ``||U_i^T U_i||^2 + ||U_j^T U_j||^2 - 2 ||U_i^T U_j||^2``, which is 2 t - 2 ||U_i^T U_j||^2 for
    orthonormal columns and holds for any others as well. Distances of nearly equal subspaces are small
    differences, so the products are formed in float64 whatever the dtype of the bases, on a copy.

    Args:
        bases: [K, n, t], orthonormal columns.

    Returns:
        [K, K] float64, never negative, symmetric, with a diagonal of exactly 0 (NaN for a basis with a
        non-finite element).

    Raises:
        TypeError: not a tensor or array of a supported dtype.
        ValueError: not three axes, or no basis.
    """
    tensor = as_floating(bases, "bases")
    if tensor.dim() != 3 or tensor.shape[0] == 0:
        raise ValueError(f"bases must have shape (K, n, t) with K >= 1; got {tuple(tensor.shape)}")
    return algebra.sq_distance(cross_gram_sq([tensor.double()]))


def consensus_matrix(
    operators: RowsLike, weights: Any, *, scale: float | Literal["median"] = "median"
) -> Tensor:
    """How much every client takes over from every other: Eq. 7 of M3Fed (ACM MM 2024).

    ``S_ij`` is proportional to ``w_j exp(-||G_i - G_j||_F^2 / s)``, by log-sum-exp. The printed formula has
    s = 1, and its exponentials vanish for operators of ordinary size: S becomes the identity. The median of
    the distances keeps the order of the weights and takes out the scale.

    Args:
        operators: [K, m, n], or any other form of rows that :func:`mmfl_fast.ops.gram` takes.
        weights: [K], not negative, the rho of the paper; only their ratios matter. A client of weight 0 has a
            column of zeros.
        scale: s, or ``"median"`` for the median of the distances of different clients, at least 1e-12. The
            median takes part in the gradient.

    Returns:
        S [K, K] float64, rows sum to 1. A client with a non-finite operator has NaN in its own row and
        column, and the others share as if it were absent.

    Raises:
        TypeError: as :func:`mmfl_fast.ops.gram`.
        ValueError: as :func:`mmfl_fast.ops.gram`; weights of another shape, negative, non-finite or all 0; a
            scale that is not positive and finite.
    """
    rows = as_rows(operators, "operators")
    share = shares_of(as_weights(weights, rows))
    number = isinstance(scale, REAL_NUMBER) and not isinstance(scale, bool)
    if scale != "median" and not (number and 0 < scale < math.inf):
        raise ValueError(f'scale must be "median" or a positive finite number; got {scale!r}')
    distance = projection_distance(operators)
    defined = ~torch.isnan(distance)
    distance = torch.where(defined, distance, 0.0)
    divisor = _median_between(distance, defined) if scale == "median" else scale
    present = share > 0
    log_share = torch.where(present, torch.where(present, share, 1.0).log(), -torch.inf)
    logits = torch.where(defined, log_share - distance / divisor, -torch.inf)
    # A row of NaN operators has no finite logit; it is replaced before the softmax and after it.
    some = defined.any(dim=1, keepdim=True)
    shares = torch.softmax(torch.where(some, logits, 0.0), dim=1)
    return torch.where(defined, shares, torch.nan)


def _median_between(distance: Tensor, defined: Tensor) -> Tensor:
    """Median of the defined entries off the diagonal, the mean of the middle two; 1 if there are none."""
    # Each pair once: twice as many have the same middle.
    between = defined & torch.ones_like(defined).triu(diagonal=1)
    if distance.device.type == "cpu" and are_known(distance):
        chosen = distance[between]
        if not len(chosen):
            return distance.new_ones(())
        places = ((len(chosen) - 1) // 2 + 1, len(chosen) // 2 + 1)
        # Selection takes a tenth of the time of an order; on a GPU the number of pairs would be waited for.
        both = {place: chosen.kthvalue(place).values for place in places}
        middle = torch.stack([both[place] for place in places]).mean()
        return torch.where(torch.isfinite(middle), middle, 1.0).clamp(min=_SCALE_FLOOR)
    count = between.sum()
    # Undefined entries go to the end of the order.
    ordered = torch.where(between, distance, torch.inf).flatten().sort().values
    middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2])
    middle = ordered.take_along_dim(middle.clamp(max=ordered.numel() - 1), 0).mean()
    return torch.where(
        count > 0, torch.where(torch.isfinite(middle), middle, 1.0).clamp(min=_SCALE_FLOOR), 1.0
    )


def consensus_mix(operators: RowsLike, matrix: Any) -> Any:
    """``G_i <- sum_j S_ij G_j``, the update after Eq. 7 of M3Fed (ACM MM 2024).

    The paper prints ``G_i`` inside the sum, which would change nothing because the rows of S sum to 1.

    Args:
        operators: [K, m, n], or any other form of rows that :func:`mmfl_fast.ops.gram` takes.
        matrix: S [K, K].

    Returns:
        K operators in the structure and dtype of the input.

    Raises:
        TypeError: as :func:`mmfl_fast.ops.gram`.
        ValueError: as :func:`mmfl_fast.ops.gram`, or a matrix that is not [K, K].
    """
    return mix(operators, as_matrix(matrix, as_rows(operators, "operators"), square=True))
