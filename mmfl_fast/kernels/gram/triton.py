"""``gram`` by Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfl_fast.kernels import rows
from mmfl_fast.kernels.gram.triton_kernels import gram_kernel, join_kernel
from mmfl_fast.kernels.triton_launch import TYPES, factor_type, on, precision
from mmfl_fast.kernels.triton_rows import row_tables


@dataclass(frozen=True)
class Tile:
    """What a program of ``gram_kernel`` multiplies at a time.

    Attributes:
        rows: in a group.
        columns: of them.
        warps: of the program.
        stages: of tiles under way from memory.
        splits: of the columns, at most: what keeps a large GPU busy.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    splits: int


# By type of the arithmetic: the first tile with enough rows. The last is for pairs of groups of rows.
TILES = {
    torch.float32: (
        Tile(16, 32, 1, 6, 1056),
        Tile(32, 16, 2, 6, 528),
        Tile(64, 32, 8, 3, 264),
        Tile(64, 16, 8, 4, 264),
    ),
    torch.float64: (
        Tile(16, 32, 1, 4, 1056),
        Tile(32, 16, 2, 4, 528),
        Tile(64, 16, 8, 3, 264),
        Tile(64, 16, 8, 4, 264),
    ),
}
# Columns after which sums go on in float64.
RUN = 4096
# Partial sums take no more than this.
_PARTIAL_BYTES = 64 << 20
# A split of fewer tiles costs more to add up than it saves.
_SHORTEST_SPLIT = 4
_JOIN = {"ENTRIES": 32, "SPLITS": 32}


def tile_for(count: int, compute: torch.dtype) -> Tile:
    """The configuration for K rows."""
    tiles = TILES[compute]
    return next((tile for tile in tiles if tile.rows >= count), tiles[-1])


def gram(
    blocks: Sequence[Tensor],
    segments: int,
    stacked: bool,
    origin: Sequence[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmfl_fast.kernels.gram.gram`. Asynchronous, on the current stream of the blocks' device."""
    device = blocks[0].device
    count = rows.row_count(blocks, segments, stacked)
    compute = rows.compute_dtype([block.dtype for block in blocks])
    tile = tile_for(count, compute)
    groups = -(-count // tile.rows)
    side, pairs = groups * tile.rows, groups * (groups + 1) // 2
    most = max(1, min(tile.splits, _PARTIAL_BYTES // (8 * side * side)))
    with on(device):
        tables = row_tables(blocks, segments, stacked, origin, tile.columns)
        splits = [min(most, -(-table.tiles // _SHORTEST_SPLIT)) for table in tables]
        partial = torch.empty(sum(splits), side, side, dtype=torch.float64, device=device)
        sums, means = partial.new_empty(2, sum(splits) if centre_rows else 0, side)
        counts = partial.new_empty(sum(splits))
        products = partial.new_empty(count, count)
        row_mean = partial.new_zeros(count)
        shifted = bool(origin) or mean_origin or centre_rows
        for t, table in enumerate(tables):
            factor = compute if shifted else factor_type(compute, table.dtype)
            gram_kernel[(splits[t] * pairs,)](
                table.device,
                partial,
                sums,
                means,
                counts,
                count,
                len(table.chosen),
                table.tiles,
                splits[t],
                sum(splits[:t]),
                side,
                pairs,
                ELEMENT=TYPES[table.dtype],
                ORIGIN_ELEMENT=TYPES[table.further_dtype],
                COMPUTE=TYPES[compute],
                FACTOR=TYPES[factor],
                PRECISION=precision(tf32),
                ORIGIN="mean" if mean_origin else "row" if origin else "none",
                CENTRE=centre_rows,
                PAIRED=groups > 1,
                ONE_BLOCK=table.one_block,
                WHOLE=table.whole,
                ROWS=tile.rows,
                COLUMNS=tile.columns,
                RUN=RUN,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=True,
            )
        join_kernel[(-(-count * count // _JOIN["ENTRIES"]),)](
            partial,
            sums,
            means,
            counts,
            products,
            row_mean,
            count,
            sum(splits),
            side,
            CENTRE=centre_rows and len(tables) > 0,
            **_JOIN,
            num_warps=4,
            enable_fp_fusion=True,
        )
        return _finish(products, row_mean, mean_origin, centre_rows)


def _finish(
    products: Tensor, row_mean: Tensor, mean_origin: bool, centre_rows: bool
) -> tuple[Tensor, Tensor]:
    """Subtract the centroid of the finite rows, whose products are C G C, and mark the other rows."""
    finite = torch.isfinite(products.diagonal())
    both = finite[:, None] & finite
    if mean_origin:
        count = finite.sum().clamp(min=1)
        average = torch.where(both, products, 0.0).sum(dim=1) / count
        products = products - (average[:, None] + average) + average.sum() / count
        row_mean = row_mean - torch.where(finite, row_mean, 0.0).sum() / count
    products = torch.where(both, products, torch.nan)
    products.diagonal().clamp_(min=0)
    return products, torch.where(finite, row_mean, torch.nan) if centre_rows else row_mean
