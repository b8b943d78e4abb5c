import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.algorithms.fedmvp import FedMVP, centrality, contrastive_matching, distance
from mmfl_fast.federation import Context, Inputs, Uploads
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.streams import Purpose, torch_generator

SMALL = {"width": 8, "batch_size": 8, "local_epochs": 2, "learning_rate": 0.01, "items": 12}


@pytest.fixture(autouse=True)
def _one_thread(set_threads):
    """As the engine trains; small products on several threads wait for each other."""
    set_threads(1)


def build(federation, **options):
    algorithm = FedMVP(FedMVP.Config(**{**SMALL, **options}))
    return algorithm, algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))


def train(algorithm, state, clients):
    phases = algorithm.client_phases()
    return [train_clients([c], [algorithm.broadcast(state, c)], phases, 0, 0)[0].params for c in clients]


def shares(clients):
    sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    return sizes / sizes.sum()


def test_contrastive_matching_by_hand():
    joint = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.3, 0.1]])
    single = torch.tensor([[0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])
    there = torch.tensor([True, True, False])
    rows = [joint[0], joint[1], single[0], single[1]]
    losses = []
    for a, partner in enumerate([2, 3, 0, 1]):
        scores = [math.exp(float(rows[a] @ rows[b]) / 0.5) for b in range(4) if b != a]
        losses.append(-math.log(math.exp(float(rows[a] @ rows[partner]) / 0.5) / sum(scores)))
    expected = torch.tensor(sum(losses) / 4)
    torch.testing.assert_close(contrastive_matching(joint, single, there, 0.5), expected)


@pytest.mark.parametrize("there", [[True, False, False], [False, False, False]])
def test_contrastive_matching_of_one_row_or_none_is_zero(there):
    joint = torch.randn(3, 4, requires_grad=True)
    loss = contrastive_matching(joint, torch.randn(3, 4), torch.tensor(there), 0.1)
    (gradient,) = torch.autograd.grad(loss, joint)
    torch.testing.assert_close(loss.detach(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros(3, 4), atol=1e-6, rtol=0)


def test_both_forms_of_the_distance():
    joint, single = torch.zeros(4, 2), torch.tensor([[3.0, 4.0]] * 3 + [[9.0, 9.0]])
    there = torch.tensor([True, True, True, False])
    assert float(distance(joint, single, there, "row")) == 5.0
    torch.testing.assert_close(distance(joint, single, there, "batch"), torch.tensor(math.sqrt(75.0) / 3))
    still = torch.zeros(4, 2, requires_grad=True)
    for form in ("row", "batch"):
        (gradient,) = torch.autograd.grad(distance(still, torch.zeros(4, 2), there, form), still)
        assert not gradient.isnan().any()


def test_worked_weights():
    cka = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.0, 0.2], [0.2, 0.2, 1.0]], dtype=torch.float64)
    sizes = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    expected = torch.tensor([0.370370, 0.370370, 0.259259], dtype=torch.float64)
    torch.testing.assert_close(centrality(cka, sizes, "cka"), expected, atol=1e-6, rtol=0)
    expected = torch.tensor([1.0, 1.0, 0.4], dtype=torch.float64) / 2.4
    torch.testing.assert_close(centrality(cka, sizes, "cka-offdiag"), expected)
    expected = torch.tensor([1.0, 0.5, 0.35], dtype=torch.float64) / 1.85
    torch.testing.assert_close(centrality(cka, sizes, "cka-size"), expected)
    assert torch.equal(centrality(cka, sizes, "size"), sizes)
    assert torch.equal(centrality(torch.eye(3, dtype=torch.float64), sizes, "cka-offdiag"), sizes)


def test_the_loss_is_the_sum_of_its_terms(pairs):
    algorithm, state = build(pairs, mcm=0.3, ram=0.7)
    client = pairs.clients[0]
    params, batch = algorithm.broadcast(state, client), gather(client.task, client.train_rows)
    joint, singles = algorithm.joint(params, batch.inputs.values), algorithm.singles(params, batch.inputs)
    supervised = F.cross_entropy(algorithm.predict(params, batch.inputs), batch.labels)
    expected = supervised
    everything = torch.ones(len(batch.labels), dtype=torch.bool)
    for single in singles:
        logits = single @ params["head.out.weight"].T + params["head.out.bias"]
        better = F.cross_entropy(logits, batch.labels) < supervised
        pull = (joint - single).norm(dim=1).mean() if better else 0.0
        expected = expected + 0.3 * contrastive_matching(joint, single, everything, 0.1) + 0.7 * pull
    torch.testing.assert_close(algorithm.loss(params, batch, Context(params, 0)), expected)


@pytest.mark.parametrize("better", [True, False])
def test_only_a_better_teacher_pulls_and_none_is_moved(pairs, better):
    algorithm, state = build(pairs, mcm=0.0, ram=1.0)
    plain, _ = build(pairs, mcm=0.0, ram=0.0)
    client = pairs.clients[0]
    (params,) = train(algorithm, state, [client])
    batch = gather(client.task, client.train_rows)
    labels = batch.labels
    # Class means as the head: perfect on what it was made from, the teachers' features or the joint ones.
    values = batch.inputs.values
    source = algorithm.singles(params, batch.inputs)[1] if better else algorithm.joint(params, values)
    means = torch.stack([source[labels == c].mean(dim=0) for c in range(3)])
    silent = {n: t * 0 for n, t in params.items() if n.startswith(("head.0", "head.1"))}
    params = {**params, **silent, "head.out.weight": 50 * (means - means.mean(dim=0))}
    logits = [
        h @ params["head.out.weight"].T + params["head.out.bias"]
        for h in (algorithm.joint(params, batch.inputs.values), *algorithm.singles(params, batch.inputs))
    ]
    joint, *alone = (float(F.cross_entropy(x, labels)) for x in logits)
    assert any(a < joint for a in alone) == better

    leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
    found = []
    for method in (algorithm, plain):
        loss = method.loss(leaves, batch, Context(params, 0))
        gradients = torch.autograd.grad(
            loss, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        found.append(dict(zip(leaves, gradients, strict=True)))
    assert any(not torch.equal(found[0][n], found[1][n]) for n in leaves) == better
    assert not any(found[0][n].any() for n in leaves if n.startswith("teacher"))


def test_every_penalty_has_a_gradient(pairs):
    algorithm, state = build(pairs)
    client = pairs.clients[1]
    params = algorithm.broadcast(state, client)
    batch = gather(client.task, client.train_rows)
    joint = algorithm.joint(params, batch.inputs.values).requires_grad_()
    single = algorithm.singles(params, batch.inputs)[0]
    there = torch.ones(len(batch.labels), dtype=torch.bool)
    for penalty in (
        contrastive_matching(joint, single, there, 0.1),
        distance(joint, single.detach(), there, "row"),
        distance(joint, single.detach(), there, "batch"),
    ):
        (gradient,) = torch.autograd.grad(penalty, joint, retain_graph=True)
        assert (gradient.abs().sum(dim=1) > 0).all()


def test_dropped_rows_have_no_part_in_the_loss(pairs):
    client = pairs.clients[0]
    batch = gather(client.task, client.train_rows)
    present = batch.inputs.present.clone()
    present[::2, 1] = False
    values = {**batch.inputs.values, "text": batch.inputs.values["text"] * present[:, 1:]}
    thinned = batch._replace(inputs=Inputs(values, present))
    rest = gather(client.task, client.train_rows[1::2])
    dropping, state = build(pairs, incomplete="drop")
    params = dropping.broadcast(state, client)
    context = Context(params, 0)
    torch.testing.assert_close(dropping.loss(params, thinned, context), dropping.loss(params, rest, context))
    keeping, _ = build(pairs)
    assert abs(keeping.loss(params, thinned, context) - keeping.loss(params, rest, context)) > 1e-4


def test_a_row_with_one_modality_is_classified_by_it_alone(pairs):
    algorithm, state = build(pairs)
    params = algorithm.broadcast(state, pairs.clients[0])
    batch = gather(pairs.tasks[0], pairs.clients[0].test_rows)
    rows = len(batch.labels)
    present = torch.tensor([[True, False]] * rows)
    inputs = Inputs({**batch.inputs.values, "text": torch.zeros(rows, 5)}, present)
    other = Inputs({**batch.inputs.values, "text": torch.ones(rows, 5)}, present)
    assert torch.equal(algorithm.predict(params, inputs), algorithm.predict(params, other))
    single = algorithm.singles(params, inputs)[0]
    expected = single @ params["head.out.weight"].T + params["head.out.bias"]
    torch.testing.assert_close(algorithm.predict(params, inputs), expected)
    complete = algorithm.predict(params, batch.inputs)
    assert not torch.allclose(complete, expected)


def test_equal_clients_are_averaged_as_fedavg_does(pairs):
    algorithm, state = build(pairs)
    clients = pairs.clients
    params = train(algorithm, state, clients[:1])[0]
    new = algorithm.aggregate(state, Uploads(clients, [params] * 4), shares(clients))
    for name, tensor in params.items():
        torch.testing.assert_close(new.models[0][name], tensor)
    torch.testing.assert_close(new.cka, torch.ones(4, 4, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("server", ["cka", "cka-offdiag", "cka-size", "size"])
def test_the_server_weights_by_centrality_whatever_the_order(pairs, server):
    algorithm, state = build(pairs, server=server)
    clients = list(pairs.clients)
    sent = train(algorithm, state, clients)
    new = algorithm.aggregate(state, Uploads(clients, sent), shares(clients))
    items = state.items[0]
    features = torch.stack([F.normalize(algorithm.joint(p, items), dim=1) for p in sent])
    weights = centrality(mf.ops.linear_cka(features).double(), shares(clients), server)
    for name, before in state.models[0].items():
        expected = sum(w * p[name].double() for w, p in zip(weights, sent, strict=True))
        torch.testing.assert_close(new.models[0][name].double(), expected, atol=1e-6, rtol=1e-5)
        assert not torch.equal(new.models[0][name], before), name
    order = [2, 0, 3, 1]
    shuffled = Uploads([clients[i] for i in order], [sent[i] for i in order])
    again = algorithm.aggregate(state, shuffled, shares(shuffled.clients))
    for name in new.models[0]:
        torch.testing.assert_close(again.models[0][name], new.models[0][name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again.cka, new.cka, atol=1e-6, rtol=1e-5)


def test_who_was_not_drawn_is_unknown(pairs):
    algorithm, state = build(pairs)
    drawn = [pairs.clients[1], pairs.clients[3]]
    new = algorithm.aggregate(state, Uploads(drawn, train(algorithm, state, drawn)), shares(drawn))
    known = ~algorithm.similarity(new).isnan()
    assert new.cka.shape == (2, 2)
    assert known.nonzero().tolist() == [[1, 1], [1, 3], [3, 1], [3, 3]]
    assert set(algorithm.metrics(new)) == {"cka_mean", "cka_smallest"}


@pytest.mark.parametrize(
    "options", [{}, {"incomplete": "drop", "ram_distance": "batch"}, {"renorm_joint": True, "server": "size"}]
)
def test_clients_trained_in_a_stack_come_out_the_same(pairs, options):
    thinned = data.with_missing(pairs, rate=0.5, level="sample", seed=0)
    task = thinned.tasks[0]
    inputs = gather(task, torch.arange(task.num_samples)).inputs
    alone, stacked = (
        mf.run(thinned, "fedmvp", rounds=1, config={**SMALL, **options, "chunk": chunk}).state
        for chunk in (1, 4)
    )
    algorithm, _ = build(thinned, **options)
    # Not the parameters: Adam turns the rounding error of a gradient that is zero into full steps.
    logits = [algorithm.predict(state.models[0], inputs) for state in (alone, stacked)]
    torch.testing.assert_close(*logits, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(alone.cka, stacked.cka, atol=5e-3, rtol=0)


def test_it_learns_with_incomplete_rows(pairs):
    thinned = data.with_missing(pairs, rate=0.5, level="sample", seed=0)
    result = mf.run(thinned, "fedmvp", rounds=16, config={**SMALL, "learning_rate": 0.01})
    # Six seeds end between 0.83 and 1; a guess is right one time in three.
    assert result.final["accuracy"] > 0.7


def test_pictures_are_flattened():
    labels = np.arange(24) % 2
    pictures = np.random.default_rng(0).normal(size=(24, 1, 4, 4)).astype(np.float32)
    federation = data.from_arrays({"image": pictures}, labels, labels, name="pictures")
    _, state = build(federation)
    assert state.models[0]["teacher.image.weight"].shape == (8, 16)
    assert torch.isfinite(mf.run(federation, "fedmvp", rounds=1, config=SMALL).final["per_client"]).all()
