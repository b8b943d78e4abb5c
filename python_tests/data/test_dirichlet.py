from __future__ import annotations

import numpy as np
import pytest
import torch

from mmfl_fast.data import dirichlet, from_arrays, merge
from mmfl_fast.data.partition import dirichlet_owners, holdout, random_rank
from mmfl_fast.data.seeding import stream


def label_shares(task, train):
    """Return [C, K]: the share of each class's rows that each client holds, on one side of the split."""
    rows = task.is_train if train else ~task.is_train
    counts = torch.zeros(task.num_classes, len(task.client_names))
    counts.index_put_((task.labels[rows], task.owner[rows]), torch.tensor(1.0), accumulate=True)
    return counts / counts.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("alpha", [1e-3, 0.4, 1.0, 1e6])
@pytest.mark.parametrize("clients", [1, 2, 13])
def test_every_row_is_owned_once_and_keeps_its_side(make_federation, alpha, clients):
    fed = make_federation(rows=900)
    new = dirichlet(fed, clients, alpha, seed=2)
    (old_task,), (task,) = fed.tasks, new.tasks
    assert task.client_names == tuple(str(k) for k in range(clients))
    assert len(new.clients) == clients
    rows = torch.cat([torch.cat([c.train_rows, c.test_rows]) for c in new.clients])
    assert sorted(rows.tolist()) == list(range(900))
    for kept in ("labels", "is_train", "present"):
        assert torch.equal(getattr(task, kept), getattr(old_task, kept))
    assert all(torch.equal(task.inputs[m], x) for m, x in old_task.inputs.items())
    assert min(c.num_train for c in new.clients) >= 2


def test_train_and_test_rows_follow_the_same_shares(make_federation):
    task = dirichlet(make_federation(rows=50_000), clients=8, alpha=0.4).tasks[0]
    train, test = label_shares(task, True), label_shares(task, False)
    # Cutting at rounded places moves at most one row per boundary; a class has about 2000 test rows.
    assert (train - test).abs().max() < 2e-3
    assert train.std() > 0.1


def test_small_alpha_is_more_uneven(make_federation):
    fed = make_federation(rows=20_000)
    spread = [float(label_shares(dirichlet(fed, 10, a).tasks[0], True).std()) for a in (0.1, 1.0, 100.0)]
    assert spread[0] > 1.5 * spread[1] > 5 * spread[2]


def test_a_large_alpha_deals_equal_shares_of_every_class(make_federation):
    task = dirichlet(make_federation(rows=5000), clients=10, alpha=1e6).tasks[0]
    assert (label_shares(task, True) - 0.1).abs().max() < 2e-3
    sizes = torch.bincount(task.owner[task.is_train])
    # Five classes, each cut at places that are rounded and drawn from a spread of a thousandth.
    assert sizes.max() - sizes.min() <= 10


def test_shares_have_the_moments_of_the_dirichlet_distribution():
    # Var of one share of Dir(a, ..., a) over K clients is (K - 1) / (K^2 (K a + 1)).
    labels = np.repeat(np.arange(400), 100)
    owner = dirichlet_owners(labels, 5, 1.0, stream(0, "moments"), minimum=0)
    shares = np.stack([np.bincount(owner[labels == c], minlength=5) for c in range(400)]) / 100
    assert shares.mean(axis=0) == pytest.approx(np.full(5, 0.2), abs=0.03)
    assert shares.var() == pytest.approx(4 / (25 * 6), rel=0.1)


def test_same_seed_same_partition_whatever_stands_beside(make_federation):
    def owner(seed, *others):
        return dirichlet(merge([*others, make_federation()]), 6, 0.4, seed).tasks[-1].owner

    assert torch.equal(owner(0), owner(0))
    assert torch.equal(owner(0), owner(0, make_federation(name="other")))
    assert not torch.equal(owner(0), owner(1))


def test_clients_per_task(make_federation):
    fed = merge([make_federation(name="a"), make_federation(name="b"), make_federation(name="c", clients=4)])
    new = dirichlet(fed, {"a": 3, "b": 11}, alpha=1.0)
    assert [len(task.client_names) for task in new.tasks] == [3, 11, 4]
    assert new.tasks[2] is fed.tasks[2]


def test_parts_of_a_client_share_its_rows(make_federation):
    fed = make_federation(rows=2000, clients=6)
    task = dirichlet(fed, 5, 0.1, seed=1, within_clients=True).tasks[0]
    (old,) = fed.tasks
    assert task.client_names == tuple(f"{k}-{p}" for k in range(6) for p in range(5))
    assert torch.equal(task.owner // 5, old.owner)
    for kept in ("labels", "is_train", "present"):
        assert torch.equal(getattr(task, kept), getattr(old, kept))
    held = torch.bincount(task.owner[task.is_train], minlength=30)
    assert held.min() >= 2
    # About 270 rows each if they were dealt evenly; at a = 0.1 most classes of a client go to one part.
    assert held.double().std() > 30


def test_parts_of_a_client_depend_on_its_name_only(make_federation):
    full = make_federation(rows=900, clients=4)
    (task,) = full.tasks
    kept = task.owner != 2
    fewer = from_arrays(
        {m: x[kept] for m, x in task.inputs.items()},
        task.labels[kept],
        task.owner[kept],
        np.where(task.is_train[kept], "train", "test"),
        name=task.name,
    )
    whole, part = (dirichlet(f, 3, 0.4, within_clients=True).tasks[0] for f in (full, fewer))
    assert part.client_names == tuple(f"{k}-{p}" for k in (0, 1, 3) for p in range(3))
    names = [np.asarray(t.client_names)[t.owner] for t in (whole, part)]
    assert names[0][kept].tolist() == names[1].tolist()


def test_a_client_without_training_rows_stays_whole(federation_with_an_empty_client):
    task = dirichlet(federation_with_an_empty_client, 2, 1.0, within_clients=True).tasks[0]
    assert task.client_names == ("0-0", "0-1", "1", "2-0", "2-1")
    assert (task.owner == 2).nonzero().flatten().tolist() == list(range(20, 40))


def test_a_client_too_small_for_its_parts():
    fed = from_arrays({"a": np.ones((30, 1))}, np.zeros(30, int), ["ann"] * 25 + ["bob"] * 5, name="two")
    message = (
        "task 'two', training rows of client 'bob': 4 rows are too few for 3 clients with at least 2 each"
    )
    with pytest.raises(ValueError, match=message):
        dirichlet(fed, 3, within_clients=True)


def test_poor_clients_are_topped_up_from_the_largest():
    # One class and a tiny alpha give nearly all rows to one client.
    labels = np.zeros(100, dtype=np.int64)
    bare = np.bincount(dirichlet_owners(labels, 20, 1e-3, stream(0, "x"), minimum=0), minlength=20)
    topped = np.bincount(dirichlet_owners(labels, 20, 1e-3, stream(0, "x"), minimum=3), minlength=20)
    assert bare.min() == 0
    assert topped.min() == 3
    assert topped.sum() == 100
    assert topped.argmax() == bare.argmax()


def test_top_up_that_needs_every_row():
    labels = np.zeros(30, dtype=np.int64)
    owner = dirichlet_owners(labels, 10, 0.1, stream(0, "x"), minimum=3)
    assert np.bincount(owner).tolist() == [3] * 10


def test_a_task_without_test_rows():
    x = np.ones((40, 1))
    fed = from_arrays({"a": x}, np.arange(40) % 4, np.zeros(40, int), np.full(40, "train"))
    assert dirichlet(fed, 5).tasks[0].is_train.all()


def test_impossible_partition():
    fed = from_arrays({"a": np.ones((10, 1))}, np.zeros(10, int), np.zeros(10, int), name="tiny")
    message = "task 'tiny', training rows: 8 rows are too few for 5 clients with at least 2 each"
    with pytest.raises(ValueError, match=message):
        dirichlet(fed, clients=5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": 0}, ValueError, "alpha must be finite and > 0, got 0"),
        ({"alpha": float("inf")}, ValueError, "alpha must be finite"),
        ({"alpha": None}, TypeError, "alpha must be a number, got None"),
        ({"clients": 0}, ValueError, "clients must be >= 1, got 0"),
        ({"clients": 2.5}, TypeError, "clients must be an integer >= 1, got 2.5"),
        ({"clients": {"tog": 3}}, ValueError, "unknown task 'tog'; did you mean 'toy'"),
        ({"clients": {"toy": 0}}, ValueError, r"clients\['toy'\] must be >= 1"),
        ({"within_clients": "no"}, TypeError, "within_clients must be true or false, got 'no'"),
        ({"seed": True}, TypeError, "seed must be an integer"),
    ],
)
def test_wrong_arguments_are_named(make_federation, arguments, error, message):
    with pytest.raises(error, match=message):
        dirichlet(make_federation(rows=60), **arguments)


def test_random_rank_numbers_the_rows_of_each_owner():
    owner = np.array([2, 0, 2, 2, 0, 5])
    rank = random_rank(owner, stream(0, "rank"))
    for k in (0, 2, 5):
        assert sorted(rank[owner == k]) == list(range((owner == k).sum()))


def test_holdout_keeps_a_lone_row_for_training():
    owner = np.array([0, 1, 1, 2, 2, 2, 2, 2, 4])
    is_train = holdout(owner, seed=0)
    assert [int((~is_train[owner == k]).sum()) for k in (0, 1, 2, 4)] == [0, 1, 1, 0]
