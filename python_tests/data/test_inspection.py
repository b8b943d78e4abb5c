from __future__ import annotations

from dataclasses import replace

import pytest

from mmfl_fast.data import describe
from mmfl_fast.data.inspection import find_problems


@pytest.fixture(scope="module")
def fsdd(real_data):
    (dataset,) = describe("fsdd").datasets
    features = dataset.extract({"recordings.zip": real_data("fsdd") / "fsdd" / "recordings.zip"})
    return replace(dataset, extract=lambda _: features), real_data("fsdd")


def test_no_problems(fsdd):
    dataset, root = fsdd
    assert find_problems(dataset, root) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"classes": dict.fromkeys("0123456789", 299)},
            f"fsdd: expected samples per class {[299] * 10}, read {[300] * 10}",
        ),
        (
            {"modalities": {"audio": (40, 20)}},
            "fsdd: expected feature shapes {'audio': (40, 20)}, read {'audio': (40, 24)}",
        ),
        ({"people": ("george",)}, "fsdd: expected people 1, read 6"),
        ({"num_train": 3000}, "fsdd: expected training samples 3000, read 2700"),
    ],
)
def test_other_samples_than_published_are_named(fsdd, changes, problem):
    dataset, root = fsdd
    assert find_problems(replace(dataset, **changes), root) == [problem]
