"""``mix`` as a torch op.

With W the matrix, A = W C where C subtracts the mean of the rows that take part (or is the identity), and
o the row offsets: ``Y = A X - W o 1^T``, so ``dX = A^T dY`` is another ``mix``, ``do = -W^T dY 1`` and
``dW = dY (C X - o 1^T)^T``. The last is a plain matrix product of torch, in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.mix import native
from mmfl_fast.kernels.registration import Primitive, needs_gradient, register, sample


def _fake(
    blocks: Sequence[Tensor], segments: int, stacked: bool, matrix: Tensor, *_options: object
) -> list[Tensor]:
    return [
        block.new_empty((matrix.shape[0], *rows.row_shape(block, stacked))) for block in blocks[:segments]
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    blocks, ctx.segments, ctx.stacked, matrix, row_offset, ctx.centre_columns = inputs
    ctx.output_like = [(y.shape, y.dtype) for y in output]
    ctx.save_for_backward(*blocks, matrix, row_offset)


def _backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    *blocks, matrix, row_offset = ctx.saved_tensors
    upstream = [
        matrix.new_zeros(shape, dtype=dtype) if gradient is None else gradient
        for gradient, (shape, dtype) in zip(gradients, ctx.output_like, strict=True)
    ]
    blocks_need, _, _, matrix_needs, offset_needs, _ = needs_gradient(ctx)
    takes_part = (matrix != 0).any(dim=0)

    d_blocks: list[Tensor | None] = [None] * len(blocks)
    if any(blocks_need):
        weights = matrix
        if ctx.centre_columns:
            shared = matrix.sum(dim=1, keepdim=True) / takes_part.sum().clamp(min=1)
            weights = matrix - torch.where(takes_part, shared, 0.0)
        mixed = mix(upstream, ctx.segments, True, weights.mT, None, False)
        d_blocks = list(rows.split_rows(mixed, blocks, ctx.segments, ctx.stacked))

    d_matrix = d_offset = None
    if matrix_needs or offset_needs:
        totals = torch.zeros_like(matrix[:, 0])
        d_matrix = torch.zeros_like(matrix)
        for s, gradient in enumerate(upstream):
            dtype = rows.compute_dtype([gradient.dtype])
            flat = gradient.to(dtype).reshape(gradient.shape[0], -1)
            totals = totals + flat.sum(dim=1, dtype=torch.float64)
            if matrix_needs:
                values = rows.segment_matrix(blocks, ctx.segments, ctx.stacked, s).to(dtype)
                if ctx.centre_columns:
                    members = torch.where(takes_part[:, None], values, 0.0)
                    values = values - members.sum(dim=0) / takes_part.sum().clamp(min=1)
                d_matrix = d_matrix + (flat @ values.mT).double()
        if row_offset is not None:
            d_matrix = d_matrix - totals[:, None] * row_offset
            d_offset = -(matrix.mT @ totals)
    return d_blocks, None, None, d_matrix if matrix_needs else None, d_offset, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    results = [
        mix(*[sample(argument, dim, i) for argument, dim in zip(arguments, in_dims, strict=True)])
        for i in range(info.batch_size)
    ]
    stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
    return stacked, [0] * len(stacked)


mix = register(
    Primitive(
        name="mix",
        signature="(Tensor[] blocks, int segments, bool stacked, Tensor matrix, Tensor? row_offset, "
        "bool centre_columns) -> Tensor[]",
        fake=_fake,
        setup_context=_setup_context,
        backward=_backward,
        vmap=_vmap,
    ),
    cpu=native.mix,
    cuda=native.mix_cuda,
)
