from dataclasses import replace

import pytest
import torch

from mmfl_fast import data
from mmfl_fast.algorithms.encoders_held import encoder_of, without_foreign_encoders
from mmfl_fast.federation import Context, part_of
from mmfl_fast.federation.batching import gather


@pytest.fixture
def thinned(toy_federation):
    """Clients of either modality and of both."""
    federation = data.with_missing(toy_federation, rate=0.7, seed=2)
    assert {c.modalities for c in federation.clients} == {("left",), ("right",), ("left", "right")}
    return federation


def block_of(name):
    return ".".join(name.split(".")[: 2 if name.startswith("encoder.") else 1])


def by_hand(run, params):
    """Equations of the module, client by client."""
    clients, starts = run.federation.clients, run.starts()
    rows = [without_foreign_encoders(p, c) for p, c in zip(params, clients, strict=True)]
    blocks = sorted({block_of(n) for row in rows for n in row})
    owners = {b: [k for k, row in enumerate(rows) if any(block_of(n) == b for n in row)] for b in blocks}

    def update(k, block):
        return torch.cat(
            [(t - starts[k][n]).double().flatten() for n, t in rows[k].items() if block_of(n) == block]
        )

    attention = {}
    for block in blocks:
        for k in owners[block]:
            cosines = [
                torch.cosine_similarity(update(k, block), update(i, block), dim=0) for i in owners[block]
            ]
            shares = torch.softmax(torch.stack(cosines) / 0.1, 0).tolist()
            attention.update({(block, k, i): a for i, a in zip(owners[block], shares, strict=True)})
    expected = []
    for k, row in enumerate(rows):
        mine = {}
        for name in row:
            total, weight = 0.0, 0.0
            for i in owners[block_of(name)]:
                common = len(set(clients[k].modalities) & set(clients[i].modalities))
                r = sum(attention.get((b, k, i), 0.0) for b in blocks) / (1 + common)
                share = attention[block_of(name), k, i] * r
                total, weight = total + share * rows[i][name].double(), weight + share
            mine[name] = (total / weight).float()
        expected.append(mine)
    return expected


def test_the_server_passes_messages_as_the_equations_say(trial, thinned):
    run = trial("fusion-fedmsplit", federation=thinned)
    params = run.train()
    new = run.aggregate(params)
    for client, expected in zip(thinned.clients, by_hand(run, params), strict=True):
        for name, tensor in expected.items():
            torch.testing.assert_close(new.models[client.index][name], tensor, atol=1e-5, rtol=1e-4)


def test_who_lacks_a_modality_gets_the_mean_of_its_owners(trial, thinned):
    run = trial("fusion-fedmsplit", federation=thinned)
    params = run.train()
    new = run.aggregate(params)
    lacking = [(c, m) for c in thinned.clients for m in c.task.modalities if m not in c.modalities]
    assert lacking
    for client, modality in lacking:
        owners = [c for c in thinned.clients if modality in c.modalities]
        sizes = torch.tensor([c.num_train for c in owners], dtype=torch.float64)
        received = encoder_of(new.models[client.index], modality)
        assert not set(received) & set(run.algorithm.upload(params[client.index], client))
        for name, tensor in received.items():
            stacked = torch.stack([params[c.index][name].double() for c in owners])
            mean = torch.tensordot(sizes / sizes.sum(), stacked, dims=1).float()
            torch.testing.assert_close(tensor, mean, atol=1e-6, rtol=1e-5)


def test_a_modality_without_an_owner_drawn_stays_as_it_is(trial, thinned):
    run = trial("fusion-fedmsplit", federation=thinned)
    drawn = [c for c in thinned.clients if c.modalities == ("left",)]
    params = run.train(drawn)
    new = run.aggregate(params, drawn)
    for client in drawn:
        for name, tensor in encoder_of(run.starts()[client.index], "right").items():
            assert torch.equal(new.models[client.index][name], tensor)


def test_heads_of_one_shape_do_not_cross_tasks(trial, toy_federation):
    (task,) = data.dirichlet(toy_federation, clients=3, alpha=5.0, seed=0).tasks
    twins = data.Federation("twins", (*toy_federation.tasks, replace(task, name="other")))
    run = trial("fusion-fedmsplit", federation=twins)
    params = run.train()
    louder = [
        {n: 3 * t if c.task_index == 0 and part_of(n) == "head" else t for n, t in p.items()}
        for c, p in zip(twins.clients, params, strict=True)
    ]
    clean, other = run.aggregate(params).models, run.aggregate(louder).models
    for client in twins.clients:
        same = [torch.equal(clean[client.index][n], other[client.index][n]) for n in params[0]]
        assert all(same) == (client.task_index == 1)


@pytest.mark.parametrize("name", ["encoder.image.conv.0.weight", "fusion.score.weight", "head.1.bias"])
def test_the_pull_to_the_aggregate_has_a_gradient(trial, name):
    gradients = {}
    for strength in (0.0, 0.5):
        run = trial("fusion-fedmsplit", **{"lambda": strength})
        client, start = run.federation.clients[0], run.starts()[0]
        moved = {**start, name: (start[name] + 0.25).requires_grad_()}
        loss = run.algorithm.loss(moved, gather(client.task, client.train_rows), Context(start, 0))
        gradients[strength] = torch.autograd.grad(loss, moved[name])[0]
    pull = gradients[0.5] - gradients[0.0]
    torch.testing.assert_close(pull, torch.full_like(pull, 2 * 0.5 * 0.25), atol=1e-5, rtol=1e-5)
