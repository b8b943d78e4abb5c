"""Joining data sets of the same classes into samples of several modalities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pair_by_class(
    labels: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> tuple[NDArray[np.int64], ...]:
    """Draw partners of the same class; all that the parts of a pair share is the class.

    Args:
        labels: of each data set, ``[N_i]``.
        rng: draws who is joined with whom.

    Returns:
        Row numbers of each data set, all of one length, class by class: entry k of each belongs together.
        No row comes twice; a class has as many pairs as the smallest data set has rows of it.
    """
    parts: list[list[NDArray[np.int64]]] = [[] for _ in labels]
    for c in range(max(int(y.max()) for y in labels) + 1):
        members = [rng.permutation(np.flatnonzero(y == c)) for y in labels]
        count = min(rows.size for rows in members)
        for part, rows in zip(parts, members, strict=True):
            part.append(rows[:count])
    return tuple(np.concatenate(part) for part in parts)
