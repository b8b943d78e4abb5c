"""``gram`` as a torch op.

With Z the rows (and the origin, when it is a row, as one more), D the linear map that subtracts the origin,
E the one that subtracts element means, and R = D Z E:

    G = R R^T    so    dZ = D^T S R = (D^T S D) (Z - element means),    S = dG + dG^T,

which is one ``mix``. The rows of D^T S D add up to zero when there is an origin, so ``mix`` may subtract
any common vector from the rows before it multiplies; that keeps the gradient accurate for rows that differ
by little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.gram import native
from mmfl_fast.kernels.mix import op as mix_op
from mmfl_fast.kernels.registration import Primitive, register, sample


def _fake(blocks: Sequence[Tensor], segments: int, stacked: bool, *_options: object) -> tuple[Tensor, Tensor]:
    count = rows.row_count(blocks, segments, stacked)
    first = blocks[0]
    return (
        first.new_empty((count, count), dtype=torch.float64),
        first.new_empty((count,), dtype=torch.float64),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    blocks, ctx.segments, ctx.stacked, origin, ctx.mean_origin, ctx.centre_rows, _ = inputs
    ctx.block_count = len(blocks)
    ctx.save_for_backward(*blocks, *origin, *output)
    ctx.set_materialize_grads(False)


def _centred(weights: Tensor, finite: Tensor) -> Tensor:
    """C W C, where C subtracts the mean over the finite rows and W is zero outside them."""
    count = finite.sum().clamp(min=1)
    row = weights.sum(dim=1, keepdim=True) / count
    column = weights.sum(dim=0, keepdim=True) / count
    both = finite[:, None] & finite
    return torch.where(both, weights - row - column + weights.sum() / count**2, 0.0)


def _backward(ctx: Any, d_gram: Tensor | None, d_row_mean: Tensor | None) -> tuple[Any, ...]:
    *tensors, products, row_mean = ctx.saved_tensors
    blocks, origin = tensors[: ctx.block_count], tensors[ctx.block_count :]
    finite = ~torch.isnan(products.diagonal())
    if d_gram is None:
        d_gram = torch.zeros_like(products)
    # An entry that is NaN is a constant: nothing flows back through it.
    weights = torch.where(finite[:, None] & finite, d_gram + d_gram.mT, 0.0)
    offset = row_mean
    constant = None
    if d_row_mean is not None and ctx.centre_rows:
        constant = torch.where(finite, d_row_mean, 0.0) / rows.width(blocks, ctx.segments, ctx.stacked)
    if ctx.mean_origin:
        weights = _centred(weights, finite)
        if constant is not None:
            constant = torch.where(finite, constant - constant.sum() / finite.sum().clamp(min=1), 0.0)
    elif origin:
        total = weights.sum(dim=1, keepdim=True)
        below = torch.cat([-total.mT, total.sum().reshape(1, 1)], dim=1)
        weights = torch.cat([torch.cat([weights, -total], dim=1), below])
        offset = torch.cat([offset, offset.new_zeros(1)])
        if constant is not None:
            constant = torch.cat([constant, -constant.sum(dim=0, keepdim=True)])
    extra = [tensor.unsqueeze(0) for tensor in origin] if ctx.stacked else origin
    gradients = mix_op.mix(
        [*blocks, *extra],
        ctx.segments,
        ctx.stacked,
        weights,
        offset if ctx.centre_rows else None,
        ctx.mean_origin or bool(origin),
    )
    if constant is not None:
        gradients = [
            gradient + constant.to(gradient.dtype).reshape(-1, *[1] * (gradient.dim() - 1))
            for gradient in gradients
        ]
    pieces = rows.split_rows(gradients, [*blocks, *extra], ctx.segments, ctx.stacked)
    d_origin = pieces[ctx.block_count :]
    if ctx.stacked:
        d_origin = [piece.squeeze(0) for piece in d_origin]
    return pieces[: ctx.block_count], None, None, d_origin, None, None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    results = [
        gram(*[sample(argument, dim, i) for argument, dim in zip(arguments, in_dims, strict=True)])
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0, 0)


gram = register(
    Primitive(
        name="gram",
        signature="(Tensor[] blocks, int segments, bool stacked, Tensor[] origin, bool mean_origin, "
        "bool centre_rows, bool tf32) -> (Tensor, Tensor)",
        fake=_fake,
        setup_context=_setup_context,
        backward=_backward,
        vmap=_vmap,
    ),
    cpu=native.gram,
    cuda=native.gram_cuda,
)
