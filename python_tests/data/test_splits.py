from __future__ import annotations

import numpy as np
import pytest
import torch

from mmfl_fast.data import from_arrays
from mmfl_fast.data.assemble import capped, split_rows, split_task
from mmfl_fast.data.dataset import Features
from mmfl_fast.data.partition import holdout, holdout_last


def sequences_that_test(group, sequence):
    return sorted(set(np.asarray(sequence)[~holdout_last(np.asarray(group), np.asarray(sequence))].tolist()))


@pytest.mark.parametrize(
    ("sizes", "last"),
    [
        ([10], []),
        ([1, 9], [1]),
        ([5, 5], [1]),
        ([4, 4, 4, 4], [3]),
        ([10, 10, 2, 2], [2, 3]),
        ([10, 10, 1, 1, 8], [4]),
        ([1] * 10, [8, 9]),
        ([1] * 206, list(range(165, 206))),
    ],
)
def test_the_last_sequences_nearest_to_a_fifth_are_tested(sizes, last):
    sequence = np.repeat(np.arange(len(sizes)), sizes)
    assert sequences_that_test(np.zeros(sequence.size, int), sequence) == last


def test_groups_are_split_on_their_own_and_sequences_stay_whole():
    rng = np.random.default_rng(0)
    sequence = np.sort(rng.integers(40, size=400))
    group = sequence % 3
    shuffled = rng.permutation(400)
    is_train = holdout_last(group, sequence)
    assert holdout_last(group[shuffled], sequence[shuffled]).tolist() == is_train[shuffled].tolist()
    for g in range(3):
        of_group = group == g
        assert sequence[of_group & is_train].max() < sequence[of_group & ~is_train].min()
        alone = holdout_last(group[of_group], sequence[of_group])
        assert alone.tolist() == is_train[of_group].tolist()


def features(**changes):
    given = {
        "inputs": {"x": np.arange(12, dtype=np.float32)[:, None]},
        "labels": np.arange(12) % 2,
        "people": np.repeat([0, 1], 6),
        "is_train": np.arange(12) != 4,
        "sequence": np.arange(12) // 2 * 2,
    }
    return Features(**{**given, **changes})


def test_splits_by_name():
    assert split_rows(features(), "published", 0).tolist() == features().is_train.tolist()
    assert np.flatnonzero(~split_rows(features(), "time", 0)).tolist() == [4, 5, 10, 11]
    assert split_rows(features(), "random", 3).tolist() == holdout(features().people, 3).tolist()


def test_without_people_the_classes_are_split():
    unknown = features(people=None)
    assert np.flatnonzero(~split_rows(unknown, "time", 0)).tolist() == [10, 11]
    assert split_rows(unknown, "random", 3).tolist() == holdout(unknown.labels, 3).tolist()


@pytest.mark.parametrize(
    ("split", "absent", "message"),
    [
        ("published", {"is_train": None}, "unknown split 'published'; valid: time, random"),
        ("time", {"sequence": None}, "unknown split 'time'; valid: published, random"),
        ("tine", {}, "unknown split 'tine'; did you mean 'time'"),
    ],
)
def test_a_split_that_the_data_set_does_not_have(split, absent, message):
    with pytest.raises(ValueError, match=message):
        split_rows(features(**absent), split, 0)


def test_task_of_people_and_task_to_be_dealt():
    is_train = np.arange(12) < 7
    natural = split_task("t", features(), 5, is_train, ["ann", "bob"])
    assert natural.client_names == ("ann", "bob")
    assert natural.owner.tolist() == features().people.tolist()
    undealt = split_task("t", features(), 5, is_train)
    assert undealt.client_names == ("all",)
    assert undealt.owner.tolist() == [0] * 12
    for task in (natural, undealt):
        assert task.is_train.tolist() == is_train.tolist()
        assert task.num_classes == 5
    with pytest.raises(ValueError, match="task 't' has no natural clients"):
        split_task("t", features(people=None), 5, is_train, ["ann", "bob"])


def uneven():
    """Clients of 100 rows (half of them train), 5 (all train), 40 (none trains) and 60 (one trains)."""
    sizes = [100, 5, 40, 60]
    owners = np.repeat(np.arange(4), sizes)
    place = np.concatenate([np.arange(n) for n in sizes])
    train = place < np.array([50, 5, 0, 1])[owners]
    values = np.arange(owners.size)[:, None]
    return from_arrays({"x": values}, place % 3, owners, np.where(train, "train", "test"))


def test_the_cap_keeps_the_share_that_trains():
    fed = uneven()
    few = capped(fed, 10, seed=0)
    assert [(c.num_train, len(c.test_rows)) for c in few.clients] == [(5, 5), (5, 0), (0, 10), (1, 9)]
    (old,), (new,) = fed.tasks, few.tasks
    rows = new.inputs["x"][:, 0].long()
    assert torch.equal(rows, rows.sort().values)
    for kept in ("labels", "owner", "is_train", "present"):
        assert torch.equal(getattr(new, kept), getattr(old, kept)[rows])
    assert not torch.equal(rows, capped(fed, 10, seed=1).tasks[0].inputs["x"][:, 0].long())


def test_no_cap_and_a_cap_that_is_not_reached():
    fed = uneven()
    assert capped(fed, None, 0) is fed
    assert torch.equal(capped(fed, 100, 0).tasks[0].inputs["x"], fed.tasks[0].inputs["x"])
    with pytest.raises(ValueError, match="samples_per_client must be >= 3, got 2"):
        capped(fed, 2, 0)
