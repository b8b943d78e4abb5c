import dataclasses

import numpy as np
import pytest
import torch

from mmfl_fast import data
from mmfl_fast.data import federation as federation_module


@pytest.fixture
def uneven(make_federation):
    """Two tasks; the clients hold rows in no order, and one holds test rows only."""
    first = make_federation(rows=200, clients=5, name="first")
    second = make_federation(rows=90, clients=4, modalities=3, name="second")
    task = second.tasks[0]
    task.is_train[task.owner == 2] = False
    task.present[task.owner == 1, 0] = False
    return data.merge([first, second])


def test_clients_are_those_of_the_arrays(uneven):
    assert len(uneven.clients) == 9
    for client in uneven.clients:
        task, place = client.task, client.index - 5 * client.task_index
        own = (task.owner == place).nonzero().flatten()
        assert client.name == f"{task.name}/{task.client_names[place]}"
        assert client.train_rows.tolist() == own[task.is_train[own]].tolist()
        assert client.test_rows.tolist() == own[~task.is_train[own]].tolist()
    assert [c.modalities for c in uneven.clients[5:8]] == [
        ("m0", "m1", "m2"),
        ("m1", "m2"),
        ("m0", "m1", "m2"),
    ]
    assert uneven.clients.trainable.tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    assert uneven.clients.tested.tolist() == list(range(9))
    assert uneven.clients.num_train.tolist() == [c.num_train for c in uneven.clients]
    assert list(uneven.clients.of_task(1)) == [5, 6, 7, 8]
    assert uneven.clients.task_numbers.tolist() == [c.task_index for c in uneven.clients]


def test_kinds_tell_task_and_modalities(uneven):
    kinds, of_client = uneven.clients.kinds
    assert [kinds[i] for i in of_client] == [(c.task_index, c.modalities) for c in uneven.clients]
    assert kinds == list(dict.fromkeys((c.task_index, c.modalities) for c in uneven.clients))
    assert kinds[of_client[6]].modalities == ("m1", "m2")


def test_they_are_a_sequence(uneven):
    clients = uneven.clients
    assert [c.index for c in clients[2:8:3]] == [2, 5]
    assert clients[-1] is clients[8]
    assert clients[np.int64(3)] is clients[3]
    with pytest.raises(IndexError):
        clients[9]


def test_those_of_a_large_population_are_made_anew(uneven, monkeypatch):
    monkeypatch.setattr(federation_module, "_MOST_KEPT", 3)
    first = list(uneven.clients)
    again = list(uneven.clients)
    assert [a is b for a, b in zip(first, again, strict=True)] == [True] * 3 + [False] * 6
    assert all(torch.equal(a.train_rows, b.train_rows) for a, b in zip(first, again, strict=True))


def test_a_client_without_any_row_is_there():
    task = data.from_arrays({"x": np.eye(4)}, [0, 1, 0, 1], [0, 0, 2, 2]).tasks[0]
    task.owner[task.owner == 1] = 2
    three = data.Federation("gap", (dataclasses.replace(task, client_names=("a", "b", "c")),))
    assert [len(c.train_rows) + len(c.test_rows) for c in three.clients] == [2, 0, 2]
    assert three.clients[1].modalities == ()
