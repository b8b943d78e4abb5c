from __future__ import annotations

import pytest
import torch

from mmfl_fast import data
from mmfl_fast.data import from_arrays


def test_clients_partition_the_rows_in_ascending_order(make_federation):
    fed = make_federation()
    for client in fed.clients:
        for rows in (client.train_rows, client.test_rows):
            assert rows.dtype == torch.int64
            assert rows.tolist() == sorted(rows.tolist())
            assert (client.task.owner[rows] == client.index).all()
        assert client.task.is_train[client.train_rows].all()
        assert not client.task.is_train[client.test_rows].any()
    assert sum(c.num_train + len(c.test_rows) for c in fed.clients) == 600


def test_modalities_of_a_client_are_those_of_its_training_rows():
    x = [[1.0]] * 4
    fed = from_arrays(
        {"a": x, "b": x},
        [0, 0, 0, 0],
        ["k", "k", "l", "l"],
        ["train", "test", "train", "train"],
        present=[[True, False], [True, True], [False, False], [False, True]],
    )
    assert [client.modalities for client in fed.clients] == [("a",), ("b",)]


def test_modalities_of_a_client_without_training_rows_are_those_of_its_test_rows():
    x = [[1.0]] * 2
    fed = from_arrays(
        {"a": x, "b": x}, [0, 0], ["k", "l"], ["train", "test"], present=[[True, True], [False, True]]
    )
    assert [client.modalities for client in fed.clients] == [("a", "b"), ("b",)]


def test_a_federation_prints_as_a_summary(make_federation):
    fed = make_federation(rows=100, clients=3)
    assert repr(fed) == (
        "Federation 'toy': 3 clients\n"
        "  Task 'toy': m0 [3], m1 [4]; 5 classes; 3 clients; 80 training and 20 test rows"
    )
    assert repr(fed.clients[1]) == "Client(index=1, name='toy/1', task_index=0, modalities=('m0', 'm1'))"


@pytest.mark.parametrize(
    "function",
    [
        data.dirichlet,
        data.shards,
        data.validation_part,
        data.complete,
        lambda fed: data.with_missing(fed, rate=0.5),
        lambda fed: data.with_server_items(fed, None),
    ],
)
def test_what_is_no_federation_is_named(function):
    with pytest.raises(TypeError, match="fed must be a Federation, got dict"):
        function({})
