"""Random sketches of long rows: similarity of many clients at the price of short rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmfl_fast.kernels.rows import compute_dtype
from mmfl_fast.ops.rows import RowLike, Rows, RowsLike, as_origin, as_rows
from mmfl_fast.ops.tensors import WHOLE_NUMBER, describe

# Rows that are folded together: their sketches of some thousand columns stay in a core's cache. A GPU takes
# as many as so many elements hold: a launch for every few rows would take longer than their folding.
_TOGETHER = 64
_ELEMENTS_ON_GPU = 2**28


def sketch(
    rows: RowsLike,
    width: int,
    *,
    origin: RowLike | None = None,
    centre_rows: bool = False,
    seed: int = 0,
) -> Tensor:
    """Fold long rows into short ones that keep inner products: a count sketch (Charikar et al. 2002).

    Every column gets a random sign and is added to one of ``width`` columns; blocks of ``width`` neighbours
    are shifted by a random offset, so two columns meet with a probability of at most ``1 / width`` and the
    rows are read in order. For any two rows, over random seeds,

        E <Sx, Sy> = <x, y>,    Var <Sx, Sy> <= (|x|^2 |y|^2 + <x, y>^2) / width

    so a cosine is off by about ``sqrt(1 / width)``: 0.016 for 4096 columns.

    Args:
        rows: as :func:`mmfl_fast.ops.gram` takes them.
        width: columns of a sketch, at least 1.
        origin: one row to subtract before the folding, in the form of ``rows``; None is zero.
        centre_rows: subtract from every row the mean of its own elements, as Pearson correlation does.
        seed: integer of 64 bits >= 0; fixes signs and offsets. Only sketches of one seed and one form of rows
            can be compared.

    Returns:
        ``[K, width]``, float64 for float64 rows, else float32; differentiable. A row with a non-finite
        element has non-finite columns. Signs and offsets are drawn anew in each call, which neither
        ``torch.func.vmap`` nor ``torch.compile(fullgraph=True)`` takes.

    Raises:
        TypeError, ValueError: as :func:`mmfl_fast.ops.gram`; a ``width`` that is no integer >= 1, a ``seed``
            that is none >= 0, or ``"mean"`` as origin.
    """
    width = _at_least("width", width, 1)
    seed = _at_least("seed", seed, 0)
    if isinstance(origin, str):
        raise ValueError(f"origin must be None or a row, such as the mean of the rows; got {origin!r}")
    canonical = as_rows(rows)
    dtype = compute_dtype([block.dtype for block in canonical.blocks[: canonical.segments]])
    subtracted = as_origin(origin, canonical, rows)
    generator = torch.Generator().manual_seed(seed)
    folded = torch.zeros(canonical.row_count, width, dtype=dtype, device=canonical.device)
    ones = folded.new_zeros(1, width)
    sums = torch.zeros(canonical.row_count, dtype=torch.float64, device=canonical.device)
    for s, shape in enumerate(canonical.shapes):
        elements = shape.numel()
        if elements == 0:
            continue
        signs = torch.randint(2, (elements,), generator=generator).mul_(2).sub_(1).to(folded)
        offsets = torch.randint(width, (-(-elements // width),), generator=generator).tolist()
        first = 0
        for part in _segment(canonical, s):
            values = part.to(dtype)
            if subtracted:
                values = values - subtracted[s].flatten().to(dtype)
            last = first + len(values)
            _fold(values * signs, folded[first:last], offsets)
            if centre_rows:
                sums[first:last] += values.sum(dim=1, dtype=torch.float64)
            first = last
        _fold(signs.unsqueeze(0), ones, offsets)
    if centre_rows and canonical.width:
        folded = folded - (sums / canonical.width).to(dtype).unsqueeze(1) * ones
    return folded


def _at_least(name: str, value: int, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, WHOLE_NUMBER):
        raise TypeError(f"{name} must be an integer >= {minimum}; got {describe(value)}")
    if not minimum <= value < 2**63:
        raise ValueError(f"{name} must be an integer of 64 bits >= {minimum}; got {value}")
    return int(value)


def _segment(rows: Rows, segment: int) -> Iterator[Tensor]:
    """The rows of one segment, some at a time, each time ``[rows, elements]``."""
    blocks = rows.blocks[segment :: rows.segments]
    together = _TOGETHER
    if rows.device.type != "cpu":
        together = max(together, _ELEMENTS_ON_GPU // rows.shapes[segment].numel())
    if rows.stacked:
        yield from blocks[0].reshape(rows.row_count, -1).split(together)
        return
    for first in range(0, len(blocks), together):
        yield torch.stack([block.flatten() for block in blocks[first : first + together]])


def _fold(values: Tensor, folded: Tensor, offsets: list[int]) -> None:
    """Add columns to ``folded``, in place, block after block, each shifted round by its offset."""
    width = folded.shape[1]
    for part, offset in zip(values.split(width, dim=1), offsets, strict=True):
        behind = min(width - offset, part.shape[1])
        # Not `+=`: it stores the sum in the slice once more, which autograd refuses of a slice that is all.
        folded[:, offset : offset + behind].add_(part[:, :behind])
        folded[:, : part.shape[1] - behind].add_(part[:, behind:])
