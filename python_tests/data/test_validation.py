from __future__ import annotations

import numpy as np
import pytest
import torch

from mmfl_fast.data import from_arrays, validation_part


def federation(clients=4, train=10, test=5):
    """Every row's input is its own number; so many training and test rows of each client."""
    split = np.tile(np.repeat(["train", "test"], [train, test]), clients)
    owner = np.repeat(np.arange(clients), train + test)
    return from_arrays({"x": np.arange(owner.size)[:, None]}, owner % 2, owner, split, name="numbered")


def numbers(task, train):
    rows = task.is_train if train else ~task.is_train
    return set(task.inputs["x"][rows, 0].tolist())


def sizes(task, train):
    rows = task.is_train if train else ~task.is_train
    return torch.bincount(task.owner[rows], minlength=len(task.client_names)).tolist()


@pytest.mark.parametrize("level", ["row", "client"])
def test_no_test_row_is_left_and_no_training_row_is_lost(level):
    before = federation().tasks[0]
    after = validation_part(federation(), 0.25, level).tasks[0]
    assert numbers(after, True) | numbers(after, False) == numbers(before, True)
    assert not numbers(after, True) & numbers(after, False)
    assert after.client_names == before.client_names


def test_rows_of_every_client_test():
    task = validation_part(federation(train=10), 0.25).tasks[0]
    assert sizes(task, False) == [2] * 4  # 2.5, rounded to even
    assert sizes(task, True) == [8] * 4


def test_whole_clients_test():
    task = validation_part(federation(clients=4, train=10), 0.5, "client").tasks[0]
    assert sorted(sizes(task, False)) == [0, 0, 10, 10]
    assert [a + b for a, b in zip(sizes(task, True), sizes(task, False), strict=True)] == [10] * 4


@pytest.mark.parametrize("share", [1e-6, 1 - 1e-6])
@pytest.mark.parametrize("level", ["row", "client"])
def test_at_least_one_tests_and_at_least_one_trains(share, level):
    task = validation_part(federation(clients=3, train=4), share, level).tasks[0]
    assert task.is_train.any()
    assert not task.is_train.all()


def test_a_single_row_trains():
    labels = np.array([0, 1, 0])
    fed = from_arrays({"x": np.eye(3)}, labels, np.array([0, 1, 1]), np.repeat("train", 3))
    task = validation_part(fed, 0.9).tasks[0]
    assert sizes(task, True) == [1, 1]
    assert sizes(task, False) == [0, 1]


def test_the_seed_draws():
    def chosen(seed, level):
        return numbers(validation_part(federation(clients=8), 0.5, level, seed).tasks[0], False)

    for level in ("row", "client"):
        assert chosen(0, level) == chosen(0, level)
        assert chosen(0, level) != chosen(1, level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share must lie between 0 and 1, both excluded; got 0.0"),
        ({"share": 1}, "share must lie between 0 and 1, both excluded; got 1.0"),
        ({"level": "person"}, "unknown level 'person'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        validation_part(federation(), **options)


def test_too_few_to_choose_from():
    with pytest.raises(ValueError, match="it takes two training rows of a client"):
        validation_part(federation(train=1))
    with pytest.raises(ValueError, match="it takes two training clients"):
        validation_part(federation(clients=1), level="client")
