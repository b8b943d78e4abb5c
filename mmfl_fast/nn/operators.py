"""Linear operators with orthonormal rows."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random operator ``[rows, columns]``, ``rows <= columns``, with ``P P^T = I``.

    Raises:
        ValueError: more rows than columns.
    """
    if rows > columns:
        raise ValueError(f"rows must not exceed columns: got {rows} rows, {columns} columns")
    return retract_rows(torch.randn(rows, columns, generator=generator))


def retract_rows(operator: Tensor) -> Tensor:
    """Orthonormalise the rows of ``[..., m, n]`` by QR; orthonormal rows stay as they are."""
    q, r = torch.linalg.qr(operator.mT)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(operator.dtype)
    retracted: Tensor = (q * signs.unsqueeze(-2)).mT
    return retracted
