"""Similarities and distances of long rows: small functions of one Gram matrix."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmfl_fast.kernels.gram import gram as gram_kernel
from mmfl_fast.ops.precision import Precision, allows_tf32
from mmfl_fast.ops.rows import RowLike, Rows, RowsLike, as_origin, as_rows

_Origin = Literal["mean"] | RowLike | None


def _products(
    value: RowsLike, origin: _Origin, centre_rows: bool, precision: Precision
) -> tuple[Rows, Tensor, Tensor]:
    rows = as_rows(value)
    products, row_mean = gram_kernel(
        rows.blocks,
        rows.segments,
        rows.stacked,
        as_origin(origin, rows, value),
        isinstance(origin, str),
        centre_rows,
        allows_tf32(precision),
    )
    return rows, products, row_mean


def gram(rows: RowsLike, *, origin: _Origin = None, precision: Precision = "fp32") -> Tensor:
    """Inner products ``<x_i - o, x_j - o>`` of all pairs of rows.

    Args:
        rows: K rows of P elements: a tensor ``[K, ...]``; a sequence of such tensors, the segments of one
            long row; or a sequence of K mappings or K sequences of tensors. float64, float32, bfloat16 or
            float16, any strides.
        origin: o. ``"mean"`` is the centroid of the rows, a row in the form of ``rows`` is that row, None
            is zero. It is subtracted before any product, so rows that differ by little keep their accuracy.
        precision: of float32 products on a GPU, ``"fp32"`` or ``"tf32"``, see
            :data:`mmfl_fast.ops.precision.Precision`.

    Returns:
        [K, K] float64, symmetric to the last bit. Products are formed and added in float32 (float64 for
        float64 rows) within tiles of at most 2048 columns and in float64 across tiles, always in the same
        order. Products beyond the range of float32 overflow or vanish as they do in torch. A row with a
        non-finite element is left out of the centroid and makes its own row and column NaN.

    Raises:
        TypeError: ``rows`` or ``origin`` has no such form or a dtype that is not listed.
        ValueError: rows that do not agree in keys, shapes, dtypes or devices, or an unknown ``origin``
            or ``precision``.
    """
    return _products(rows, origin, centre_rows=False, precision=precision)[1]


def pearson_similarity(rows: RowsLike, *, origin: _Origin = "mean", precision: Precision = "fp32") -> Tensor:
    """Pearson correlation of all pairs of rows, less their origin: Eq. 5 of M3Fed (ACM MM 2024).

    Every row is centred by the mean of its own elements. A row of which only rounding is left then, a norm
    of at most 8 eps sqrt(P) |mean| with the eps of the type computed in, has no direction: its similarity is
    0 to others and 1 to itself.

    Args:
        rows: as :func:`gram` takes them.
        origin: as :func:`gram` takes it.
        precision: as :func:`gram` takes it.

    Returns:
        [K, K] float64 in [-1, 1], symmetric, with a diagonal of exactly 1 (NaN for a row with a non-finite
        element). Gradients are finite, also for rows without direction, which get none.

    Raises:
        TypeError: as :func:`gram`.
        ValueError: as :func:`gram`.
    """
    canonical, products, row_mean = _products(rows, origin, centre_rows=True, precision=precision)
    single = all(block.dtype != torch.float64 for block in canonical.blocks[: canonical.segments])
    noise = 8 * torch.finfo(torch.float32 if single else torch.float64).eps
    return _cosine(products, noise**2 * canonical.width * row_mean.detach() ** 2)


def cosine_similarity(rows: RowsLike, *, origin: _Origin = "mean", precision: Precision = "fp32") -> Tensor:
    """Cosine of the angle between all pairs of rows, less their origin.

    A row equal to the origin has no direction: its similarity is 0 to others and 1 to itself.

    Args:
        rows: as :func:`gram` takes them.
        origin: as :func:`gram` takes it.
        precision: as :func:`gram` takes it.

    Returns:
        As :func:`pearson_similarity`.

    Raises:
        TypeError: as :func:`gram`.
        ValueError: as :func:`gram`.
    """
    _, products, _ = _products(rows, origin, centre_rows=False, precision=precision)
    return _cosine(products, torch.zeros_like(products[0]))


def angular_similarity(
    rows: RowsLike,
    *,
    origin: _Origin = "mean",
    kind: Literal["pearson", "cosine"] = "pearson",
    precision: Precision = "fp32",
) -> Tensor:
    """``1 - arccos(sigma) / pi`` of all pairs of rows: Eq. 6 of M3Fed (ACM MM 2024).

    The paper calls it a distance; it is 1 for equal directions, 1/2 for orthogonal and 0 for opposite ones.

    Args:
        rows: as :func:`gram` takes them.
        origin: as :func:`gram` takes it.
        kind: sigma is the Pearson correlation or the cosine.
        precision: as :func:`gram` takes it.

    Returns:
        [K, K] float64 in [0, 1], symmetric, with a diagonal of exactly 1. The derivative of arccos, infinite
        at sigma = 1 and -1, is taken as 0 there. arccos turns an error e of a sigma near 1 into sqrt(2 e).

    Raises:
        TypeError: as :func:`gram`.
        ValueError: as :func:`gram`, or an unknown ``kind``.
    """
    if kind not in ("pearson", "cosine"):
        raise ValueError(f'kind must be "pearson" or "cosine"; got {kind!r}')
    similarity = pearson_similarity if kind == "pearson" else cosine_similarity
    sigma = similarity(rows, origin=origin, precision=precision)
    inside = sigma.abs() < 1
    angle = torch.arccos(torch.where(inside, sigma, 0.0))
    share = torch.where(inside, 1 - angle / math.pi, (sigma > 0).to(sigma.dtype))
    return torch.where(torch.isnan(sigma), torch.nan, share)


def pairwise_sq_distance(rows: RowsLike, *, precision: Precision = "fp32") -> Tensor:
    """Squared Euclidean distances ``||x_i - x_j||^2`` of all pairs of rows.

    They are differences of inner products about the centroid, so the error of a distance is relative to the
    squared distances of its two rows from the centroid.

    Args:
        rows: as :func:`gram` takes them.
        precision: as :func:`gram` takes it.

    Returns:
        [K, K] float64, never negative, symmetric, with a diagonal of exactly 0 (NaN for a row with a
        non-finite element).

    Raises:
        TypeError: as :func:`gram`.
        ValueError: as :func:`gram`.
    """
    return sq_distance(_products(rows, "mean", centre_rows=False, precision=precision)[1])


def sq_distance(products: Tensor) -> Tensor:
    """``p_ii + p_jj - 2 p_ij``: squared distances from the inner products of any vectors, [K, K]."""
    squares = products.diagonal()
    distance = (squares[:, None] + squares - (products + products.mT)).clamp(min=0)
    same = torch.eye(len(squares), dtype=torch.bool, device=products.device)
    return torch.where(same & ~torch.isnan(products), 0.0, distance)


def _cosine(products: Tensor, negligible: Tensor) -> Tensor:
    """Normalise a Gram matrix; squared norms up to ``negligible`` [K] have no direction."""
    defined = ~torch.isnan(products)
    # Masked before the arithmetic, here and below, so that no gradient passes through an undefined value.
    products = torch.where(defined, products, 0.0)
    squares = products.diagonal()
    directed = squares > torch.where(torch.isnan(negligible), 0.0, negligible)
    squares = torch.where(directed, squares, 1.0)
    norms = squares.sqrt()
    # Two quotients that are 1 to the last bit for equal rows; the product of the norms need not be.
    high, low = torch.maximum(norms[:, None], norms), torch.minimum(norms[:, None], norms)
    sigma = (products / torch.maximum(squares[:, None], squares) / (low / high)).clamp(-1, 1)
    sigma = torch.where(directed[:, None] & directed, sigma, 0.0)
    same = torch.eye(len(squares), dtype=torch.bool, device=products.device)
    return torch.where(defined, torch.where(same, 1.0, sigma), torch.nan)
