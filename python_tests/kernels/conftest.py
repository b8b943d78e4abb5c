from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class CanonicalRows:
    blocks: list[Tensor]
    segments: int
    stacked: bool

    @property
    def arguments(self) -> tuple[list[Tensor], int, bool]:
        return self.blocks, self.segments, self.stacked

    @property
    def matrix(self) -> Tensor:
        """[K, P] float64, put together by other means than the package's."""
        rows = []
        for start in range(0, len(self.blocks), self.segments):
            line = [block.double() for block in self.blocks[start : start + self.segments]]
            count = len(line[0]) if self.stacked else 1
            rows += [torch.cat([part.reshape(count, -1)[k] for part in line]) for k in range(count)]
        return torch.stack(rows)


def _arrange(layout: str, values: Tensor) -> CanonicalRows:
    rows, columns = values.shape
    half = columns // 2
    if layout == "contiguous":
        return CanonicalRows([values], 1, True)
    if layout == "slice":
        larger = values.new_full((rows + 2, columns + 3), torch.nan)
        larger[1:-1, 2:-1] = values
        return CanonicalRows([larger[1:-1, 2:-1]], 1, True)
    if layout == "every second":
        larger = values.new_full((rows, columns, 2), torch.nan)
        larger[:, :, 1] = values
        return CanonicalRows([larger[:, :, 1]], 1, True)
    if layout == "transposed":
        return CanonicalRows([values.T.contiguous().T], 1, True)
    if layout == "expanded":
        return CanonicalRows([values[:, :1].expand(rows, columns)], 1, True)
    if layout == "two strides":
        larger = values.new_full((rows, 2, half + 1), torch.nan)
        larger[:, :, :half] = values[:, : 2 * half].reshape(rows, 2, half)
        return CanonicalRows([larger[:, :, :half]], 1, True)
    if layout == "segments":
        return CanonicalRows([values[:, :half].contiguous(), values[:, half:].contiguous()], 2, True)
    if layout == "two stacks":
        return CanonicalRows([values[: rows // 2], values[rows // 2 :]], 1, True)
    assert layout == "state dicts"
    parts = [part for row in values for part in (row[:half].clone(), row[half:].clone().reshape(-1, 1))]
    return CanonicalRows(parts, 2, False)


@pytest.fixture
def arrange() -> Any:
    """``arrange(layout, values [K, P])``: the rows in that layout."""
    return _arrange


@pytest.fixture
def assert_accurate() -> Any:
    """``assert_accurate(ours, plain, exact, floor)``: at most twice the error of plain torch, and ``floor``
    times the largest exact value."""

    def check(ours: Tensor, plain: Tensor, exact: Tensor, floor: float) -> None:
        assert ours.shape == exact.shape
        if exact.numel() == 0:
            return
        error = (ours.double() - exact).abs().max()
        bound = 2 * (plain.double() - exact).abs().max() + floor * exact.abs().max()
        assert error <= bound, f"error {error:.3g}, bound {bound:.3g}"

    return check
