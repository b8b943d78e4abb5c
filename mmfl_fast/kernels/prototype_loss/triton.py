"""``prototype_loss`` by Triton kernels: one launch forward, two backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels.prototype_loss.triton_kernels import backward_kernel, forward_kernel, join_kernel
from mmfl_fast.kernels.rows import compute_dtype
from mmfl_fast.kernels.triton_launch import COMPILER, TYPES, factor_type, on, precision


@dataclass(frozen=True)
class Tile:
    """What a program computes at a time.

    Attributes:
        rows: of features.
        classes: of prototypes.
        depth: components that are multiplied for logits.
        dims: components of a gradient.
        warps: of the program.
        stages: of tiles under way from memory.
    """

    rows: int
    classes: int
    depth: int
    dims: int
    warps: int
    stages: int


# By type of the arithmetic: the first tile with enough rows and classes, or the last.
TILES = {
    torch.float32: (
        Tile(16, 16, 64, 64, 4, 2),
        Tile(16, 64, 32, 64, 4, 2),
        Tile(64, 16, 32, 64, 4, 2),
        Tile(64, 32, 32, 128, 8, 3),
    ),
    torch.float64: (Tile(16, 16, 32, 32, 2, 2), Tile(32, 32, 16, 64, 8, 2)),
}
# Programs for prototypes, that their rows are split for; about what a large GPU holds.
_PROGRAMS = 512
# A split of fewer tiles of rows costs more to add up than it saves.
_SHORTEST_SPLIT = 4
_JOIN_DIMS = 128


def tile_for(rows: int, classes: int, compute: torch.dtype) -> Tile:
    """The configuration for N rows of a client and C classes."""
    tiles = TILES[compute]
    return next((tile for tile in tiles if tile.rows >= rows and tile.classes >= classes), tiles[-1])


def _check_compiler(compute: torch.dtype) -> None:
    """Refuse what a compiler is known to crash on, which would end the process.

    Raises:
        NotImplementedError: names the version.
    """
    if compute == torch.float64 and COMPILER < (3, 9):
        raise NotImplementedError(
            f"prototype_loss in float64 needs Triton 3.9, for 3.6 crashes on it; this is "
            f"{'.'.join(map(str, COMPILER))}: take float32, or another backend"
        )


def _options(
    features: Tensor, prototypes: Tensor, class_mask: Tensor | None, tile: Tile, normalise: bool, tf32: bool
) -> dict[str, Any]:
    compute = compute_dtype([features.dtype, prototypes.dtype])
    return {
        "COMPUTE": TYPES[compute],
        "FACTOR": TYPES[factor_type(compute, features.dtype, prototypes.dtype)],
        "PRECISION": precision(tf32),
        "NORMALISE": normalise,
        "MASKED": class_mask is not None,
        "ROWS": tile.rows,
        "CLASSES": tile.classes,
        "DEPTH": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
    }


def prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and ``log sum_c exp(z_c - max z)`` of every row, both [B, N].

    Asynchronous, on the current stream of the features' device. The values of labels stay there: the loss of
    a row whose label is neither -100 nor in [0, C) is NaN, and the row has no gradient.

    Raises:
        NotImplementedError: float64, compiled by a Triton before 3.9.
    """
    clients, rows, dims = features.shape
    groups, classes, _ = prototypes.shape
    dtype = compute_dtype([features.dtype, prototypes.dtype])
    loss, log_sum = features.new_empty(2, clients, rows, dtype=dtype)
    if loss.numel() == 0:
        return loss, log_sum
    _check_compiler(dtype)
    tile = tile_for(rows, classes, dtype)
    with on(features.device):
        class_mask = None if class_mask is None else class_mask.contiguous()
        forward_kernel[(clients * -(-rows // tile.rows),)](
            features,
            labels,
            prototypes,
            class_mask,
            loss,
            log_sum,
            *features.stride(),
            *labels.stride(),
            *prototypes.stride(),
            rows,
            dims,
            classes,
            clients // groups,
            1 if class_mask is None else clients // class_mask.shape[0],
            1 / temperature,
            **_options(features, prototypes, class_mask, tile, normalise, tf32),
        )
    return loss, log_sum


def prototype_loss_backward(
    loss_gradient: Tensor,
    loss: Tensor,
    log_sum: Tensor,  # noqa: ARG001
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of features [B, N, D] and prototypes [G, C, D] in their dtypes.

    Asynchronous, on the current stream of the features' device.
    """
    clients, rows, dims = features.shape
    groups, classes, _ = prototypes.shape
    feature_gradient = features.new_empty(features.shape)
    prototype_gradient = prototypes.new_empty(prototypes.shape)
    if loss.numel() == 0 or dims == 0 or classes == 0:
        return feature_gradient.zero_(), prototype_gradient.zero_()
    tile = tile_for(rows, classes, loss.dtype)
    blocks, strips = -(-rows // tile.rows), -(-dims // tile.dims)
    prototype_programs = groups * -(-classes // tile.classes) * strips
    items = blocks * (clients // groups)
    splits = max(1, min(items // _SHORTEST_SPLIT, _PROGRAMS // prototype_programs))
    with on(features.device):
        loss = loss.contiguous()
        class_mask = None if class_mask is None else class_mask.contiguous()
        options = _options(features, prototypes, class_mask, tile, normalise, tf32)
        narrow = features.dtype.itemsize == prototypes.dtype.itemsize == 2
        partial = loss.new_empty(splits, groups, classes, dims)
        partial_radial = loss.new_empty(splits, groups, classes)
        feature_programs = clients * blocks * strips
        backward_kernel[(feature_programs + splits * prototype_programs,)](
            features,
            labels,
            prototypes,
            class_mask,
            loss_gradient,
            loss,
            feature_gradient,
            partial,
            partial_radial,
            *features.stride(),
            *labels.stride(),
            *prototypes.stride(),
            *loss_gradient.stride(),
            rows,
            dims,
            classes,
            groups,
            clients // groups,
            1 if class_mask is None else clients // class_mask.shape[0],
            splits,
            feature_programs,
            1 / temperature,
            # Gradients that are rounded to 16 bits need no more of the weights.
            GRADIENT_PRECISION=precision(tf32 or narrow),
            DIMS=tile.dims,
            **options,
        )
        join_kernel[(groups * classes,)](
            prototypes,
            partial,
            partial_radial,
            prototype_gradient,
            *prototypes.stride(),
            dims,
            classes,
            groups * classes,
            splits,
            COMPUTE=options["COMPUTE"],
            NORMALISE=normalise,
            DIMS=_JOIN_DIMS,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return feature_gradient, prototype_gradient
