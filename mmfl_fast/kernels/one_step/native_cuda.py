"""The steps on a GPU: a primitive, and one launch for the algebra on its result.

Each takes the arguments of the expression of its name in :mod:`mmfl_fast.kernels.one_step`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.cuda_place import cuda_place
from mmfl_fast.kernels.extension import _C
from mmfl_fast.kernels.gram import gram


def cosine(*arguments: Any) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.cosine`."""
    *of_gram, negligible = arguments
    return _finished("cosine", *gram(*of_gram), negligible)


def angular(*arguments: Any) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.angular`."""
    *of_gram, negligible = arguments
    return _finished("angular", *gram(*of_gram), negligible)


def sq_distance(blocks: list[Tensor], segments: int, stacked: bool, tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.sq_distance`."""
    products, _ = gram(blocks, segments, stacked, [], True, False, tf32)
    return _finished("sq_distance", products, None, 0.0)


def alignment(blocks: list[Tensor], tf32: bool, noise: float) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.alignment`."""
    products = cross_gram_sq(blocks, mean_columns=True, normalise_rows=True, tf32=tf32)
    return _finished("alignment", products, None, noise)


def _finished(step: str, products: Tensor, row_mean: Tensor | None, threshold: float) -> Tensor:
    out = torch.empty_like(products)
    device, stream, _ = cuda_place(products.device)
    getattr(_C, f"{step}_cuda")(products, row_mean, threshold, out, device, stream)
    return out
