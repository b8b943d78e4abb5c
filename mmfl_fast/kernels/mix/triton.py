"""``mix`` by a Triton kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.mix.triton_kernels import mix_kernel
from mmfl_fast.kernels.triton_launch import TYPES, on
from mmfl_fast.kernels.triton_rows import row_tables


@dataclass(frozen=True)
class Tile:
    """What a program of ``mix_kernel`` computes.

    Attributes:
        outputs: weighted sums; with ``centre_columns`` the mean of the rows is one of them.
        depth: rows that are added in the compute type, at most 64.
        columns: of them.
        warps: of the program.
        stages: of rows under way from memory, where they are multiplied as matrices.
    """

    outputs: int
    depth: int
    columns: int
    warps: int
    stages: int


# The first with enough outputs; more than the last has are shared by several programs.
TILES = (
    Tile(1, 64, 1024, 4, 1),
    Tile(2, 64, 512, 4, 1),
    Tile(4, 64, 512, 4, 1),
    Tile(16, 16, 128, 4, 4),
    Tile(64, 16, 64, 8, 4),
)


def tile_for(lines: int) -> Tile:
    """The configuration for so many weighted sums."""
    return next((tile for tile in TILES if tile.outputs >= lines), TILES[-1])


def mix(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor | None,
    centre_columns: bool,
) -> list[Tensor]:
    """See :func:`mmfl_fast.kernels.mix.mix`. Asynchronous, on the current stream of the blocks' device."""
    device = blocks[0].device
    outputs = [
        block.new_empty((matrix.shape[0], *rows.row_shape(block, stacked))) for block in blocks[:segments]
    ]
    if matrix.shape[0] == 0:
        return outputs
    with on(device):
        matrix = matrix.contiguous()
        # Addresses that are not read stand for what there is not.
        totals = offset = mean_offset = matrix
        if row_offset is not None:
            offset = row_offset.contiguous()
        if centre_columns:
            takes_part = (matrix != 0).any(dim=0, keepdim=True)
            shares = takes_part / takes_part.sum(dtype=torch.float64).clamp(min=1)
            matrix = torch.cat([shares, matrix])
            totals = matrix.sum(dim=1)
            if row_offset is not None:
                mean_offset = (shares * torch.where(takes_part, row_offset, 0.0)).sum(dim=1)
        lines, count = matrix.shape
        tile = tile_for(lines)
        shared = int(centre_columns)
        parts = -(-(lines - shared) // (tile.outputs - shared))
        for table in row_tables(blocks, segments, stacked, outputs, tile.columns):
            mix_kernel[(table.tiles * parts,)](
                table.device,
                matrix,
                totals,
                offset,
                mean_offset,
                count,
                lines,
                len(table.chosen),
                parts,
                ELEMENT=TYPES[table.dtype],
                COMPUTE=TYPES[rows.compute_dtype([table.dtype])],
                CENTRE=centre_columns,
                OFFSET=row_offset is not None,
                ONE_BLOCK=table.one_block,
                WHOLE=table.whole,
                OUTPUTS=tile.outputs,
                DEPTH=tile.depth,
                COLUMNS=tile.columns,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=True,
            )
    return outputs
