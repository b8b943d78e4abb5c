"""How a GPU may multiply float32 numbers."""

from __future__ import annotations

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["fp32", "tf32"]
"""``"fp32"`` keeps float32's accuracy. ``"tf32"`` lets a GPU round the factors of float32 products to
TensorFloat-32, 10 bits after the point, and add them in float32: relative errors near 1e-3 for a third of the
matrix instructions. A CPU computes in float32 for both, other dtypes are never affected, and plain torch
expressions go by torch's own setting."""


def allows_tf32(precision: Precision) -> bool:
    """Check a ``precision`` argument.

    Raises:
        ValueError: neither ``"fp32"`` nor ``"tf32"``.
    """
    if precision not in ("fp32", "tf32"):
        raise ValueError(f'precision must be "fp32" or "tf32"; got {precision!r}')
    return precision == "tf32"
