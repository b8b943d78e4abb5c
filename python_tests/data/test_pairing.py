from __future__ import annotations

import numpy as np

from mmfl_fast.data.pairing import pair_by_class
from mmfl_fast.data.seeding import stream

LABELS = [np.array([2, 0, 0, 1, 2, 2, 0]), np.array([0, 1, 1, 2, 2]), np.array([2, 2, 2, 1, 0, 0, 3])]


def test_partners_share_the_class_and_no_row_comes_twice():
    pairs = pair_by_class(LABELS, stream(0, "pairs"))
    classes = [labels[rows].tolist() for labels, rows in zip(LABELS, pairs, strict=True)]
    # As many of a class as the smallest set has; none of class 3, which one set alone has.
    assert classes == [[0, 1, 2, 2]] * 3
    assert all(len(set(rows.tolist())) == 4 for rows in pairs)


def test_the_generator_decides_who_is_joined():
    labels = [np.zeros(50, int), np.zeros(30, int)]
    first, again, other = (pair_by_class(labels, stream(seed, "pairs")) for seed in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))
    assert sorted(first[1].tolist()) == list(range(30))
    assert set(first[0].tolist()) != set(other[0].tolist())
