import math
from dataclasses import replace

import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.algorithms.client_graph import block_attention, common_modalities, shared_blocks
from mmfl_fast.algorithms.fedmsplit import block_of
from mmfl_fast.federation import Context
from mmfl_fast.federation.batching import gather

SMALL = {"width": 12, "operator_rows": 8, "layers": 2, "batch_size": 8, "local_epochs": 1}


def test_attention_on_worked_values():
    updates = [{"w": torch.tensor(v)} for v in ([1.0, 0.0], [0.0, 2.0], [3.0, 0.0])]
    e = math.exp(10)
    expected = [[e / (2 * e + 1), 1 / (2 * e + 1)], [1 / (e + 2), e / (e + 2)]]
    attention = block_attention(updates, 0.1)
    torch.testing.assert_close(
        attention,
        torch.tensor(
            [[*expected[0], expected[0][0]], [*expected[1], expected[1][0]], [*expected[0], expected[0][0]]]
        ).double(),
        atol=1e-6,
        rtol=0,
    )


def test_attention_does_not_saturate_on_the_largest_client():
    generator = torch.Generator().manual_seed(0)
    updates = [{"w": torch.randn(500, generator=generator)} for _ in range(4)]
    louder = [*updates[:3], {"w": 1000 * updates[3]["w"]}]
    torch.testing.assert_close(
        block_attention(updates, 0.1), block_attention(louder, 0.1), atol=1e-5, rtol=1e-5
    )
    stacked = torch.stack([u["w"] for u in louder])
    products = torch.softmax(stacked @ stacked.T / math.sqrt(500), dim=1)
    assert (products.max(dim=1).values > 0.999).all()


def blocks_of(row):
    blocks = {}
    for name in row:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def by_hand(run, params, temperature=0.1):
    """Equations of the docstring, client by client."""
    clients, starts = run.federation.clients, run.starts()
    rows = [run.algorithm.upload(p, c) for p, c in zip(params, clients, strict=True)]

    def key(k, block):
        names = blocks_of(rows[k]).get(block)
        if names is None:
            return None
        return clients[k].task_index if block == "psi" else -1, tuple((n, rows[k][n].shape) for n in names)

    def update(k, block):
        return torch.cat([(rows[k][n] - starts[k][n]).double().flatten() for n in blocks_of(rows[k])[block]])

    blocks = sorted({b for row in rows for b in blocks_of(row)})
    attention = {}
    for block in blocks:
        for k in range(len(rows)):
            if key(k, block) is None:
                continue
            owners = [i for i in range(len(rows)) if key(i, block) == key(k, block)]
            logits = torch.stack(
                [torch.cosine_similarity(update(k, block), update(i, block), dim=0) for i in owners]
            )
            for i, a in zip(owners, torch.softmax(logits / temperature, 0).tolist(), strict=True):
                attention[block, k, i] = a
    result = []
    for k, row in enumerate(rows):
        mine = {}
        for name in row:
            total, weight = 0.0, 0.0
            for i in range(len(rows)):
                if (block_of(name), k, i) not in attention:
                    continue
                common = len(set(clients[k].modalities) & set(clients[i].modalities))
                r = sum(attention.get((b, k, i), 0.0) for b in blocks) / (1 + common)
                share = attention[block_of(name), k, i] * r
                total, weight = total + share * rows[i][name].double(), weight + share
            mine[name] = (total / weight).float()
        result.append(mine)
    return result


@pytest.mark.parametrize("missing", [False, True])
def test_the_server_passes_messages_as_the_equations_say(trial, mixed_federation, toy_federation, missing):
    federation = data.with_missing(toy_federation, rate=0.7, seed=2) if missing else mixed_federation
    run = trial("fedmsplit", federation=federation, learning_rate=0.05, global_learning_rate=0.02)
    params = run.train()
    new = run.aggregate(params)
    for client, expected in zip(federation.clients, by_hand(run, params), strict=True):
        after = run.received(new, client)
        for name, tensor in expected.items():
            torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=1e-4)


def test_who_shares_which_block(trial):
    run = trial("fedmsplit")
    clients = run.federation.clients
    views = shared_blocks(clients, run.starts(), block_of, ("psi",))
    owners = {(names[0], tuple(positions)) for names, positions in views.values()}
    images, sounds = (0, 1, 2, 3), (4, 5, 6, 7)
    assert owners == {
        ("f.0.weight", images + sounds),
        ("T", images + sounds),
        ("phi.image.weight", images),
        ("phi.audio.weight", sounds),
        ("psi.weight", images),
        ("psi.weight", sounds),
    }
    assert common_modalities(clients)[0].tolist() == [1] * 4 + [0] * 4


def test_heads_of_one_shape_do_not_cross_tasks(trial, toy_federation):
    (task,) = data.dirichlet(toy_federation, clients=3, alpha=5.0, seed=0).tasks
    twins = data.Federation("twins", (*toy_federation.tasks, replace(task, name="other")))
    run = trial("fedmsplit", federation=twins)
    views = shared_blocks(twins.clients, run.starts(), block_of, ("psi",))
    heads = [positions for names, positions in views.values() if names[0] == "psi.weight"]
    assert heads == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]


def test_a_client_without_a_modality_neither_sends_nor_gets_its_input_layer(trial, toy_federation):
    federation = data.with_missing(toy_federation, rate=0.7, seed=2)
    run = trial("fedmsplit", federation=federation)
    new = run.aggregate(run.train())
    lacking = [(c, m) for c in federation.clients for m in c.task.modalities if m not in c.modalities]
    assert lacking
    for client, modality in lacking:
        before, after = run.received(run.state, client), run.received(new, client)
        names = [n for n in before if n.startswith(f"phi.{modality}.")]
        assert not set(names) & set(run.algorithm.upload(before, client))
        assert all(torch.equal(before[n], after[n]) for n in names)


@pytest.mark.parametrize("part", ["phi.image.weight", "f.1.weight", "T", "psi.bias"])
def test_the_pull_to_the_aggregate_has_a_gradient(trial, part):
    gradients = {}
    for strength in (0.0, 0.5):
        run = trial("fedmsplit", **{"lambda": strength})
        client = run.federation.clients[0]
        start = run.starts()[0]
        moved = {**start, part: (start[part] + 0.25).requires_grad_()}
        batch = gather(client.task, client.train_rows)
        loss = run.algorithm.loss(moved, batch, Context(start, 0))
        gradients[strength] = torch.autograd.grad(loss, moved[part])[0]
    pull = gradients[0.5] - gradients[0.0]
    torch.testing.assert_close(pull, torch.full_like(pull, 2 * 0.5 * 0.25), atol=1e-5, rtol=1e-5)


def test_the_pull_holds_training_back(trial):
    drift = []
    for strength in (0.0, 5.0):
        run = trial("fedmsplit", learning_rate=0.05, **{"lambda": strength})
        params, start = run.train()[0], run.starts()[0]
        drift.append(float(sum((params[n] - start[n]).square().sum() for n in start)))
    assert drift[1] < 0.5 * drift[0]


def test_metrics(mixed_federation):
    line = mf.run(mixed_federation, "fedmsplit", rounds=1, config=SMALL).history[0]
    assert 1 / 8 < line["self_weight"] <= 1
