"""``||X_i^T X_j||_F^2`` for all pairs of K matrices with common rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmfl_fast.kernels.backend import chosen
from mmfl_fast.kernels.cross_gram_sq import op, reference


def cross_gram_sq(
    blocks: Sequence[Tensor],
    *,
    mean_columns: bool = False,
    normalise_rows: bool = False,
    tf32: bool = False,
) -> Tensor:
    """Squared Frobenius norms of all cross products.

    A matrix with a NaN gives NaN in its own row and column; such entries are constants to the gradient.
    Products are added in float32 (float64 for float64) over at most 256 terms, on a GPU 2048, and in float64
    beyond. The working memory of the native kernel is 32 MiB, or 16 KiB per matrix if that is more; on a GPU
    at most about 256 MiB, or 16 KiB per matrix.

    Args:
        blocks: tensors [k, n, d] of one dtype with any strides; their k add up to K, d may differ.
        mean_columns: first subtract from every column its mean.
        normalise_rows: before that, scale every row to unit length. A row no longer than 1e-12 becomes 0
            and has no gradient.
        tf32: let a GPU round float32 factors to TensorFloat-32, 10 bits after the point. A CPU never
            does, and the plain expression goes by torch's own setting.

    Returns:
        [K, K] float64, symmetric. Differentiable, twice.
    """
    backend = chosen("cross_gram_sq", blocks[0].device)
    implementation = reference.cross_gram_sq if backend == "reference" else op.cross_gram_sq
    batched = [block.unsqueeze(0) for block in blocks]
    result: Tensor = implementation(batched, mean_columns, normalise_rows, tf32)
    return result.squeeze(0)
