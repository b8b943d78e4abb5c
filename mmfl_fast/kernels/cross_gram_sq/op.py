"""``cross_gram_sq`` as a torch op.

With Y_i the matrices after normalising and centring, and S = dG + dG^T (twice dG_ii on the diagonal):

    G_ij = ||Y_i^T Y_j||_F^2    so    dY_i = 2 sum_j S_ij Y_j Y_j^T Y_i.

The sum is formed from the n x n matrices Y_j Y_j^T or from the products Y_j^T Y_i, whichever are smaller, a
strip at a time. Centring C = I - 11^T/n is its own adjoint; a unit row u = x / |x| takes the gradient
(g - u <u, g>) / |x|.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels.cross_gram_sq import native
from mmfl_fast.kernels.registration import Primitive, register
from mmfl_fast.kernels.rows import compute_dtype
from mmfl_fast.kernels.unit_rows import unit_rows

# Elements of one strip of products in the backward.
_STRIP = 1 << 24


def _fake(blocks: Sequence[Tensor], *_options: object) -> Tensor:
    count = sum([block.shape[1] for block in blocks])
    return blocks[0].new_empty((blocks[0].shape[0], count, count), dtype=torch.float64)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    blocks, ctx.mean_columns, ctx.normalise_rows, _ = inputs
    ctx.save_for_backward(*blocks, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    *blocks, output = ctx.saved_tensors
    dtype = compute_dtype([blocks[0].dtype])
    finite = torch.isfinite(output.diagonal(dim1=-2, dim2=-1))
    both = finite[..., None] & finite[..., None, :]
    weights = torch.where(both, gradient + gradient.mT, 0.0).to(dtype)

    counts = [block.shape[1] for block in blocks]
    units, scales, views = [], [], []
    for block, valid in zip(blocks, finite.split(counts, dim=1), strict=True):
        unit, scale = block.to(dtype), None
        if ctx.normalise_rows:
            unit, scale = unit_rows(unit)
        view = unit - unit.mean(dim=-2, keepdim=True) if ctx.mean_columns else unit
        units.append(unit)
        scales.append(scale)
        # A matrix with NaN has weight 0, and 0 * NaN would spread.
        views.append(torch.where(valid[..., None, None], view, 0.0))

    rows = blocks[0].shape[2]
    columns = sum([block.shape[1] * block.shape[3] for block in blocks])
    form = _from_row_products if rows <= columns else _from_column_products
    results = []
    for block, unit, scale, d_view in zip(blocks, units, scales, form(views, weights), strict=True):
        d = d_view - d_view.mean(dim=-2, keepdim=True) if ctx.mean_columns else d_view
        if scale is not None:
            d = (d - unit * (unit * d).sum(dim=-1, keepdim=True)) * scale
        results.append(d.to(block.dtype))
    return results, None, None, None


def _from_row_products(views: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """``2 sum_j S_ij (Y_j Y_j^T) Y_i``, by strips of rows of ``Y_j Y_j^T``."""
    batch, count, rows = weights.shape[0], weights.shape[1], views[0].shape[2]
    counts = [view.shape[1] for view in views]
    height = max(1, _STRIP // max(1, batch * count * rows))
    strips: list[list[Tensor]] = [[] for _ in views]
    for start in range(0, rows, height):
        grams = torch.cat([view[..., start : start + height, :] @ view.mT for view in views], dim=1)
        mixed = (2 * weights @ grams.flatten(-2)).unflatten(-1, grams.shape[-2:])
        for strip, view, part in zip(strips, views, mixed.split(counts, dim=1), strict=True):
            strip.append(part @ view)
    return [torch.cat(strip, dim=-2) for strip in strips]


def _owner_of_columns(views: Sequence[Tensor]) -> Tensor:
    """Which matrix every column belongs to, all matrices' columns side by side."""
    owners, first = [], 0
    for view in views:
        _, count, _, columns = view.shape
        # One number says how often: a tensor of numbers would come from the host, and a GPU would wait.
        owners.append(torch.arange(first, first + count, device=view.device).repeat_interleave(columns))
        first += count
    return torch.cat(owners)


def _from_column_products(views: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """``2 sum_j Y_j (S_ij Y_j^T Y_i)``, by strips of all matrices' columns side by side."""
    flat = torch.cat([view.transpose(1, 2).flatten(-2) for view in views], dim=-1)
    owner = _owner_of_columns(views)
    columns = flat.shape[-1]
    width = max(1, _STRIP // (flat.shape[0] * columns))
    strips = []
    for start in range(0, columns, width):
        strip = flat[..., start : start + width]
        factors = 2 * weights[:, owner][..., owner[start : start + width]]
        strips.append(flat @ (flat.mT @ strip * factors))
    pieces = torch.cat(strips, dim=-1).split([view.shape[1] * view.shape[3] for view in views], dim=-1)
    return [
        piece.unflatten(-1, (view.shape[1], view.shape[3])).transpose(1, 2)
        for piece, view in zip(pieces, views, strict=True)
    ]


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    blocks, *options = arguments
    folded = [_fold(block, dim, info.batch_size) for block, dim in zip(blocks, in_dims[0], strict=True)]
    result = cross_gram_sq(folded, *options)
    return result.unflatten(0, (info.batch_size, -1)), 0


def _fold(block: Tensor, dim: int | None, size: int) -> Tensor:
    batched = block.expand(size, *block.shape) if dim is None else block.movedim(dim, 0)
    return batched.flatten(0, 1)


cross_gram_sq = register(
    Primitive(
        name="cross_gram_sq",
        signature="(Tensor[] blocks, bool mean_columns, bool normalise_rows, bool tf32) -> Tensor",
        fake=_fake,
        setup_context=_setup_context,
        backward=_backward,
        vmap=_vmap,
    ),
    cpu=native.cross_gram_sq,
    cuda=native.cross_gram_sq_cuda,
)
