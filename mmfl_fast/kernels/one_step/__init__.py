"""What the ops compute from checked arguments: a primitive, and a little algebra on its small result.

Each is a composition of torch functions, which defines it and carries gradients, transforms,
``torch.compile`` and GPUs. A dozen calls of torch take longer than a small kernel, so where nobody sees the
steps between, C++ computes the same in one, see :func:`mmfl_fast.kernels.one_step.in_one_step.in_one_step`.
"""

from __future__ import annotations

from torch import Tensor

from mmfl_fast.kernels import cross_gram_sq as cross_gram_sq_kernel
from mmfl_fast.kernels import gram as gram_kernel
from mmfl_fast.kernels import mix as mix_kernel
from mmfl_fast.kernels import prototype_loss as prototype_loss_kernel
from mmfl_fast.kernels.mix.weights import shares
from mmfl_fast.kernels.one_step import algebra, differentiable, native, native_cuda
from mmfl_fast.kernels.one_step.in_one_step import in_one_step
from mmfl_fast.kernels.prototype_loss.client_axis import with_client_axis


@in_one_step("gram", native.cosine, on_gpu=native_cuda.cosine)
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
    """Cosines of rows, [K, K]: :func:`algebra.cosine` of :func:`mmfl_fast.kernels.gram.gram`."""
    products, row_mean = gram_kernel.gram(blocks, segments, stacked, origin, mean_origin, centre_rows, tf32)
    return algebra.cosine(products, row_mean, negligible)


@in_one_step("gram", native.angular, on_gpu=native_cuda.angular)
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
    """Angles between rows, [K, K]: :func:`algebra.angular` of :func:`mmfl_fast.kernels.gram.gram`."""
    products, row_mean = gram_kernel.gram(blocks, segments, stacked, origin, mean_origin, centre_rows, tf32)
    return algebra.angular(products, row_mean, negligible)


@in_one_step("gram", native.sq_distance, on_gpu=native_cuda.sq_distance)
def sq_distance(blocks: list[Tensor], segments: int, stacked: bool, tf32: bool) -> Tensor:
    """Squared distances of rows, [K, K]: :func:`algebra.sq_distance` of products about the centroid."""
    products, _ = gram_kernel.gram(blocks, segments, stacked, [], True, False, tf32)
    return algebra.sq_distance(products)


@in_one_step("cross_gram_sq", native.alignment, on_gpu=native_cuda.alignment)
def alignment(blocks: list[Tensor], tf32: bool, noise: float) -> Tensor:
    """Similarity of representations [k, n, d], [K, K]: :func:`algebra.alignment`, at most 1.

    Rows are normalised and columns centred, see :func:`mmfl_fast.kernels.cross_gram_sq.cross_gram_sq`.
    """
    products = cross_gram_sq_kernel.cross_gram_sq(blocks, mean_columns=True, normalise_rows=True, tf32=tf32)
    return algebra.alignment(products, noise).clamp(max=1.0)


@in_one_step("mix", native.weighted_mean)
def weighted_mean(blocks: list[Tensor], segments: int, stacked: bool, weights: Tensor) -> list[Tensor]:
    """One row, a tensor per segment: :func:`mmfl_fast.kernels.mix.mix` by the shares of ``weights`` [K].

    Raises:
        ValueError: see :func:`mmfl_fast.kernels.mix.weights.shares`.
    """
    matrix = shares(weights).unsqueeze(0)
    return [row[0] for row in mix_kernel.mix(blocks, segments, stacked, matrix, None, False)]


@in_one_step("prototype_loss", native.mean_prototype_loss, differentiable.mean_prototype_loss)
def mean_prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> Tensor:
    """Mean of the losses of all rows that count, see :func:`prototype_losses`."""
    losses = prototype_losses(features, labels, prototypes, class_mask, temperature, normalise, tf32)
    return algebra.counted_mean(losses, labels, class_mask)


def prototype_losses(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> Tensor:
    """:func:`mmfl_fast.kernels.prototype_loss.prototype_loss` of tensors that may lack the axis of clients.

    Args:
        features: [B, N, D] or [N, D].
        labels: [B, N] or [N].
        prototypes: [G, C, D] or [C, D].
        class_mask: [M, C] or [C], or None.
        temperature: as the kernel takes it.
        normalise: as the kernel takes it.
        tf32: as the kernel takes it.

    Returns:
        In the shape of ``labels``.
    """
    tensors = with_client_axis(features, labels, prototypes, class_mask)
    losses = prototype_loss_kernel.prototype_loss(*tensors, temperature, normalise, tf32)
    return losses if labels.dim() == 2 else losses.squeeze(0)
