"""``cross_gram_sq`` by Triton kernels: ``||X_i^T X_j||_F^2 = <X_i X_i^T, X_j X_j^T>``.

The n x n matrices exist for all views at once, but in strips of bounded size; each strip is one ``gram``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfl_fast.kernels.cross_gram_sq.triton_kernels import mean_kernel, products_kernel, scale_kernel
from mmfl_fast.kernels.gram.triton import gram
from mmfl_fast.kernels.rows import compute_dtype
from mmfl_fast.kernels.triton_launch import TYPES, factor_type, on, precision


@dataclass(frozen=True)
class Tile:
    """What a program multiplies at a time.

    Attributes:
        rows: of either factor.
        depth: columns of them.
        warps: of the program.
        stages: of tiles under way from memory.
    """

    rows: int
    depth: int
    warps: int
    stages: int


# By type of the arithmetic: the first with enough rows, or the last.
TILES = {
    torch.float32: (Tile(16, 64, 1, 3), Tile(64, 32, 8, 3)),
    torch.float64: (Tile(16, 32, 1, 3), Tile(64, 16, 8, 3)),
}
# A strip of all products takes no more than this, or one tile per matrix.
_STRIP_BYTES = 64 << 20


def tile_for(rows: int, compute: torch.dtype) -> Tile:
    """The configuration for n common rows."""
    tiles = TILES[compute]
    return next((tile for tile in tiles if tile.rows >= rows), tiles[-1])


def cross_gram_sq(blocks: Sequence[Tensor], mean_columns: bool, normalise_rows: bool, tf32: bool) -> Tensor:
    """See :func:`mmfl_fast.kernels.cross_gram_sq.cross_gram_sq`; here with a batch axis in front.

    Asynchronous, on the current stream of the blocks' device.
    """
    samples = [
        _one_sample([block[b] for block in blocks], mean_columns, normalise_rows, tf32)
        for b in range(blocks[0].shape[0])
    ]
    count = sum([block.shape[1] for block in blocks])
    return torch.stack(samples) if samples else blocks[0].new_empty(0, count, count, dtype=torch.float64)


def _one_sample(blocks: Sequence[Tensor], mean_columns: bool, normalise_rows: bool, tf32: bool) -> Tensor:
    rows = blocks[0].shape[1]
    count = sum([block.shape[0] for block in blocks])
    compute = compute_dtype([blocks[0].dtype])
    tile = tile_for(rows, compute)
    total = blocks[0].new_zeros(count, count, dtype=torch.float64)
    with on(total.device):
        views = [_Views(block, mean_columns, normalise_rows, compute, tile) for block in blocks]
        tiles = max(1, _STRIP_BYTES // (count * max(1, rows) * tile.rows * compute.itemsize))
        for first in range(0, rows, tiles * tile.rows):
            width = min(tiles * tile.rows, rows - first)
            products = total.new_empty(count, rows, width, dtype=compute)
            at = 0
            for view in views:
                view.multiply(products[at : at + len(view.block)], first, tf32)
                at += len(view.block)
            total = total + gram([products], 1, True, [], False, False, tf32)[0]
    return total


class _Views:
    """Matrices [k, n, d] of one shape, with what is done to them before they are multiplied."""

    def __init__(
        self, block: Tensor, mean_columns: bool, normalise_rows: bool, compute: torch.dtype, tile: Tile
    ) -> None:
        self.block, self.tile, self.compute = block, tile, compute
        self.centre, self.normalise = mean_columns, normalise_rows
        count, rows, columns = block.shape
        self.scales = block.new_empty(count if normalise_rows else 0, rows, dtype=compute)
        self.means = block.new_empty(count if mean_columns else 0, columns, dtype=compute)
        arguments = (*block.stride(), rows, columns)
        options = {"COMPUTE": TYPES[compute], "ROWS": tile.rows, "DEPTH": tile.depth}
        if self.scales.numel() > 0:
            scale_kernel[(count * -(-rows // tile.rows),)](
                block,
                self.scales,
                *arguments,
                **options,
                num_warps=tile.warps,
                num_stages=1,
                enable_fp_fusion=True,
            )
        if self.means.numel() > 0:
            mean_kernel[(count * -(-columns // tile.depth),)](
                block,
                self.scales,
                self.means,
                *arguments,
                NORMALISE=normalise_rows,
                **options,
                num_warps=tile.warps,
                num_stages=1,
                enable_fp_fusion=True,
            )

    def multiply(self, products: Tensor, first_column: int, tf32: bool) -> None:
        """Write the columns of all ``Y Y^T`` from one on into ``products`` [k, n, width]."""
        count, rows, columns = self.block.shape
        width = products.shape[2]
        shifted = self.centre or self.normalise
        factor = self.compute if shifted else factor_type(self.compute, self.block.dtype)
        tiles = count * -(-rows // self.tile.rows) * -(-width // self.tile.rows)
        if tiles == 0:
            return
        products_kernel[(tiles,)](
            self.block,
            self.scales,
            self.means,
            products,
            *self.block.stride(),
            rows,
            columns,
            first_column,
            width,
            COMPUTE=TYPES[self.compute],
            FACTOR=TYPES[factor],
            PRECISION=precision(tf32),
            CENTRE=self.centre,
            NORMALISE=self.normalise,
            ROWS=self.tile.rows,
            DEPTH=self.tile.depth,
            num_warps=self.tile.warps,
            num_stages=self.tile.stages,
            enable_fp_fusion=True,
        )
