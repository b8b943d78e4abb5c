"""The steps in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.extension import _C
from mmfl_fast.kernels.gram import native as gram_native
from mmfl_fast.kernels.mix import weights as mix_weights
from mmfl_fast.kernels.prototype_loss.labels import refuse
from mmfl_fast.kernels.rows import compute_dtype


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
    result, row_mean = gram_native.gram(blocks, segments, stacked, origin, mean_origin, centre_rows, tf32)
    _C.cosine(result, row_mean, negligible, torch.get_num_threads())
    return result


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
    result, row_mean = gram_native.gram(blocks, segments, stacked, origin, mean_origin, centre_rows, tf32)
    _C.angular(result, row_mean, negligible, torch.get_num_threads())
    return result


def sq_distance(blocks: list[Tensor], segments: int, stacked: bool, tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.sq_distance`."""
    result, _ = gram_native.gram(blocks, segments, stacked, [], True, False, tf32)
    _C.sq_distance(result, torch.get_num_threads())
    return result


def alignment(blocks: list[Tensor], _tf32: bool, noise: float) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.alignment`."""
    count = sum([block.shape[0] for block in blocks])
    result = torch.empty(count, count, dtype=torch.float64, device="cpu")
    threads = torch.get_num_threads()
    _C.cross_gram_sq(blocks, True, True, result, threads)
    _C.alignment(result, noise, threads)
    return result


def weighted_mean(blocks: list[Tensor], segments: int, stacked: bool, weights: Tensor) -> list[Tensor]:
    """See :func:`mmfl_fast.kernels.one_step.weighted_mean`."""
    if weights.dtype not in (torch.float64, torch.float32):
        weights = weights.double()
    outputs = [
        torch.empty(rows.row_shape(block, stacked), dtype=block.dtype, device="cpu")
        for block in blocks[:segments]
    ]
    if not _C.weighted_mean(blocks, segments, stacked, weights, outputs, torch.get_num_threads()):
        mix_weights.refuse(weights)
    return outputs


def mean_prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    _tf32: bool,
) -> Tensor:
    """See :func:`mmfl_fast.kernels.one_step.mean_prototype_loss`."""
    mean = torch.empty((), dtype=compute_dtype([features.dtype, prototypes.dtype]), device="cpu")
    class_mask = None if class_mask is None else class_mask.contiguous()
    bad_label = _C.mean_prototype_loss(
        features, labels, prototypes, class_mask, temperature, normalise, mean, torch.get_num_threads()
    )
    if bad_label >= 0:
        refuse(labels, prototypes.shape[-2], bad_label)
    return mean
