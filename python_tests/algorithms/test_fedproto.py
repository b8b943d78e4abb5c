import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.federation import Context, part_of
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.checkpoints import state_tensors

LAST_CLASS = 3


@pytest.fixture
def sparse_federation():
    """Four classes: client 0 has 0 and 1, client 1 has 1 and 2, client 2 one row of class 2; nobody has 3."""
    labels = np.array([0] * 4 + [1] * 6 + [1] * 3 + [2] * 5 + [2])
    owners = np.repeat([0, 1, 2], [10, 8, 1])
    values = np.random.default_rng(0).normal(size=(19, 5)) + labels[:, None]
    return data.from_arrays(
        {"x": values, "y": values[:, :3] ** 2},
        labels,
        owners,
        split=["train"] * 19,
        num_classes=4,
        name="sparse",
    )


def embedded(run, params, client):
    """z and labels of a client's training rows."""
    batch = gather(client.task, client.train_rows)
    return run.algorithm.embed(params, batch.inputs).double(), batch.labels


@pytest.mark.parametrize("weights", ["uniform", "count"])
def test_prototypes_are_averaged_over_the_clients_that_have_the_class(trial, sparse_federation, weights):
    run = trial("fedproto", federation=sparse_federation, prototype_weights=weights, min_count=1)
    params = run.train()
    own = [embedded(run, p, c) for p, c in zip(params, sparse_federation.clients, strict=True)]
    found = run.aggregate(params).prototypes[0]
    assert found["prototype.known"].tolist() == [True, True, True, False]
    for k in range(LAST_CLASS):
        rows = [z[labels == k] for z, labels in own if (labels == k).any()]
        mean = (
            torch.cat(rows).mean(0) if weights == "count" else torch.stack([r.mean(0) for r in rows]).mean(0)
        )
        torch.testing.assert_close(found["prototype.complete"][k].double(), mean, atol=1e-5, rtol=1e-4)


def test_a_class_of_nobody_keeps_its_last_prototype(trial, sparse_federation):
    run = trial("fedproto", federation=sparse_federation)
    once = run.aggregate(run.train())
    client = sparse_federation.clients[1]
    again = replace(run, state=once)
    twice = again.aggregate(again.train([client]), [client])
    before, after = (s.prototypes[0]["prototype.complete"] for s in (once, twice))
    assert [torch.equal(before[k], after[k]) for k in range(4)] == [True, False, False, True]
    assert twice.prototypes[0]["prototype.known"].tolist() == [True, True, True, False]


def test_a_prototype_of_one_row_does_not_leave_the_client(trial, sparse_federation):
    run = trial("fedproto", federation=sparse_federation)
    lone = sparse_federation.clients[2]
    sent = run.algorithm.upload(run.starts()[2], lone)
    assert not sent["prototype.count"].any()
    assert not sent["prototype.local"].any()


def loss_of(run, start, client):
    return run.algorithm.loss(start, gather(client.task, client.train_rows), Context(start, 0))


def test_the_distance_is_to_the_prototype_of_the_own_class(trial, sparse_federation):
    run = trial("fedproto", federation=sparse_federation, **{"lambda": 0.5})
    client, start = sparse_federation.clients[0], run.starts()[0]
    complete = torch.randn(4, start["prototype.complete"].shape[1])
    known = {
        **start,
        "prototype.complete": complete,
        "prototype.known": torch.tensor([False, True, True, True]),
    }
    z, labels = embedded(run, start, client)
    assert labels.unique().tolist() == [0, 1]
    expected = (z[labels == 1] - complete[1].double()).square().mean()
    gap = loss_of(run, known, client) - loss_of(run, start, client)
    torch.testing.assert_close(gap.double(), 0.5 * expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["encoder", "fusion"])
def test_the_distance_has_a_gradient(trial, sparse_federation, part):
    gradients = []
    for strength in (0.0, 2.0):
        run = trial("fedproto", federation=sparse_federation, **{"lambda": strength})
        run = replace(run, state=run.aggregate(run.train()))
        client, start = sparse_federation.clients[0], run.starts()[0]
        leaves = {n: t.clone().requires_grad_() for n, t in start.items() if part_of(n) == part}
        loss = loss_of(run, {**start, **leaves}, client)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))]))
    assert (gradients[1] - gradients[0]).norm() > 1e-3


def test_the_distance_draws_features_together(toy_federation, small):
    spread = {}
    for strength in (0.0, 5.0):
        run = mf.run(toy_federation, "fedproto", rounds=6, config=small("fedproto", **{"lambda": strength}))
        algorithm = mf.algorithms.get("fedproto")(mf.algorithms.get("fedproto").Config(**small("fedproto")))
        client = toy_federation.clients[3]
        z = algorithm.embed(run.state.models[0], gather(client.task, client.train_rows).inputs)
        labels = client.task.labels[client.train_rows]
        within = torch.stack([z[labels == k].var(dim=0).mean() for k in range(3)]).mean()
        spread[strength] = float(within)
    assert spread[5.0] < 0.7 * spread[0.0]


def test_with_a_weight_of_zero_the_model_is_that_of_fedavg(toy_federation, small):
    fedavg = mf.run(toy_federation, "fusion-fedavg", rounds=3, config=small("fusion-fedavg")).state
    fedproto = mf.run(toy_federation, "fedproto", rounds=3, config=small("fedproto", **{"lambda": 0.0})).state
    expected, found = fedavg.models[0], fedproto.models[0]
    assert all(torch.equal(expected[n], found[n]) for n in expected)


def test_without_weights_only_prototypes_cross_the_network(toy_federation, small, tmp_path):
    config = small("fedproto", exchange_weights=False)
    result = mf.run(toy_federation, "fedproto", rounds=2, out=tmp_path / "run", config=config)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    z = config["heads"] * config["width"]
    assert line["bytes_up"] == len(toy_federation.clients) * (3 * z * 4 + 3 * 8)
    assert line["bytes_down"] == len(toy_federation.clients) * (3 * z * 4 + 3)
    heads = [result.state.personal[c.index]["head.1.weight"] for c in toy_federation.clients]
    assert not any(torch.equal(heads[0], other) for other in heads[1:])
    assert not any(name.startswith("models/") for name in state_tensors(result.state))


def test_metrics_tell_how_many_classes_have_a_prototype(sparse_federation, small):
    with pytest.warns(UserWarning, match="no test row"):
        result = mf.run(sparse_federation, "fedproto", rounds=1, config=small("fedproto"))
    assert result.history[0]["prototype_share"] == 0.75
