"""Plain-torch expression of ``mix``; the contract is in ``__init__.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.autocast import without_autocast


@without_autocast
def mix(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor | None,
    centre_columns: bool,
) -> list[Tensor]:
    """See :func:`mmfl_fast.kernels.mix.mix`."""
    takes_part = (matrix != 0).any(dim=0)
    outputs = []
    for s in range(segments):
        block = blocks[s]
        shape = rows.row_shape(block, stacked)
        dtype = rows.compute_dtype([block.dtype])
        values = rows.segment_matrix(blocks, segments, stacked, s).to(dtype)
        if centre_columns:
            members = torch.where(takes_part[:, None], values, 0.0)
            values = values - members.sum(dim=0) / takes_part.sum().clamp(min=1)
        if row_offset is not None:
            values = values - row_offset[:, None].to(dtype)
        mixed = _weighted_sums(matrix.to(dtype), values, matrix != 0)
        outputs.append(mixed.to(block.dtype).reshape(matrix.shape[0], *shape))
    return outputs


def _weighted_sums(weights: Tensor, values: Tensor, reads: Tensor) -> Tensor:
    """``weights @ values`` where a weight of 0 leaves a non-finite value unread."""
    finite = torch.isfinite(values)
    sums = weights @ torch.where(finite, values, 0.0)
    spoilt = reads.to(values.dtype) @ (~finite).to(values.dtype)
    return torch.where(spoilt > 0, torch.nan, sums)
