"""The steps on a GPU: a primitive, and one launch for the algebra on its result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.cuda_place import cuda_place
from mmfl_fast.kernels.extension import _C
from mmfl_fast.kernels.gram import gram


def cosine(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    origin: list[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
    negligible: float,
) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.cosine`."""
    products, row_mean = gram(blocks, segments, stacked, origin, mean_origin, centre_rows, tf32)
    return _finished(_C.cosine_cuda, products, row_mean, negligible)


def angular(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    origin: list[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
    negligible: float,
) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.angular`."""
    products, row_mean = gram(blocks, segments, stacked, origin, mean_origin, centre_rows, tf32)
    return _finished(_C.angular_cuda, products, row_mean, negligible)


def sq_distance(blocks: list[Tensor], segments: int, stacked: bool, tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.sq_distance`."""
    products, _ = gram(blocks, segments, stacked, [], True, False, tf32)
    return _finished(_C.sq_distance_cuda, products, None, 0.0)


def alignment(blocks: list[Tensor], tf32: bool, noise: float) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.alignment`."""
    products = cross_gram_sq(blocks, mean_columns=True, normalise_rows=True, tf32=tf32)
    return _finished(_C.alignment_cuda, products, None, noise)


def _finished(
    step: Callable[..., None], products: Tensor, row_mean: Tensor | None, threshold: float
) -> Tensor:
    out = torch.empty_like(products)
    device, stream, _ = cuda_place(products.device)
    step(products, row_mean, threshold, out, device, stream)
    return out
