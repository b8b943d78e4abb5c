import math

import pytest
import torch
import torch.nn.functional as F

import mmfl_fast as mf
from mmfl_fast.algorithms.meta_har import pairwise_loss, reptile_weights
from mmfl_fast.federation import Context, part_of
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.local_training import train_clients

SMALL = {"width": 12, "operator_rows": 8, "layers": 2, "batch_size": 8, "local_epochs": 1}


def test_pairwise_loss_on_worked_values():
    embeddings = torch.tensor([[2.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 3.0], [1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([1, 1, 0, 2, 0, 0])
    # Same class at cosine 1, other classes at cosine 0, same class at cosine -1.
    expected = (math.log1p(math.exp(-10)) + math.log(2) + math.log1p(math.exp(10))) / 3
    assert float(pairwise_loss(embeddings, labels, 10.0)) == pytest.approx(expected, rel=1e-5)


def test_pairwise_loss_is_the_logistic_loss_of_same_class():
    embeddings, labels = torch.randn(12, 5), torch.randint(0, 2, (12,))
    score = 4 * F.cosine_similarity(embeddings[0::2], embeddings[1::2])
    same = (labels[0::2] == labels[1::2]).float()
    torch.testing.assert_close(
        pairwise_loss(embeddings, labels, 4.0), F.binary_cross_entropy_with_logits(score, same)
    )


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_padding_changes_no_pair(rows):
    embeddings, labels = torch.randn(rows, 3), torch.arange(rows) % 2
    padded = torch.cat([embeddings, torch.zeros(3, 3)]).requires_grad_()
    value = pairwise_loss(padded, F.pad(labels, (0, 3), value=-100), 10.0)
    torch.testing.assert_close(value, pairwise_loss(embeddings, labels, 10.0))
    (gradient,) = torch.autograd.grad(value, padded)
    assert gradient.isfinite().all()
    assert not gradient[rows:].any()
    assert bool(gradient.any()) == (rows > 1)


def test_an_embedding_of_zero_has_cosine_and_gradient_zero():
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    value = pairwise_loss(embeddings, torch.tensor([0, 0]), 10.0)
    assert float(value.detach()) == pytest.approx(math.log(2))
    assert not torch.autograd.grad(value, embeddings)[0].any()


def test_reptile_weights_on_worked_values():
    origin = {"w": torch.tensor([3.0, 4.0])}
    moves = [[3.0, 4.0], [-4.0, 3.0], [0.0, 0.0]]
    learners = [{"w": origin["w"] + torch.tensor(m)} for m in moves]
    weights = reptile_weights(learners, origin, torch.full((3,), 1 / 3, dtype=torch.float64))
    # Both moved by 5; the first kept its direction, the second turned by 45 degrees.
    first, second = 5.0, 5 / math.sqrt(2)
    expected = torch.tensor([first, second, 0.0], dtype=torch.float64) / (first + second)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-6)


def test_reptile_weights_where_nobody_moved():
    fallback = torch.tensor([0.3, 0.7], dtype=torch.float64)
    origin = {"w": torch.ones(2)}
    assert torch.equal(reptile_weights([origin, origin], origin, fallback), fallback)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_the_server_takes_a_reptile_step(trial, rate):
    run = trial("meta-har", server_rate=rate)
    params = run.train()
    new = run.aggregate(params)
    weights = reptile_weights(
        [{n: p[n] for n in run.state.shared} for p in params], run.state.shared, torch.zeros(8).double()
    )
    for name, start in run.state.shared.items():
        mean = torch.tensordot(weights, torch.stack([p[name].double() for p in params]), dims=1)
        expected = start + rate * (mean - start)
        torch.testing.assert_close(new.shared[name], expected.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("epochs", "passes"),
    [
        (1, ["pairs", "joint"]),
        (2, ["pairs", "pairs", "head", "joint"]),
        (3, ["pairs"] * 3 + ["head"] + ["joint"] * 2),
        (4, ["pairs"] * 4 + ["head"] * 2 + ["joint"] * 2),
    ],
)
def test_pairs_get_the_local_epochs_and_not_twice_as_many(trial, epochs, passes):
    phases = trial("meta-har", local_epochs=epochs).algorithm.client_phases()
    assert [p.name for p in phases] == passes


def moved_by(run, client, start, phases):
    (result,) = train_clients([client], [start], phases, 0, 0)
    return result.params, {n for n in start if not torch.equal(start[n], result.params[n])}


def test_each_phase_moves_its_parts_and_no_other(trial):
    run = trial("meta-har", local_epochs=2)
    client, start = run.federation.clients[0], run.starts()[0]
    first, second, head, joint = run.algorithm.client_phases()
    params, moved = moved_by(run, client, start, [first])
    assert {part_of(n) for n in moved} == {"phi", "f", "T"}
    params, moved = moved_by(run, client, params, [second])
    assert {part_of(n) for n in moved} == {"phi", "f", "T", "own"}
    assert all(torch.equal(params[n], params[f"own.{n}"]) for n in params if part_of(n) in ("phi", "f", "T"))
    params, moved = moved_by(run, client, params, [head])
    assert {part_of(n) for n in moved} == {"psi"}
    params, moved = moved_by(run, client, params, [joint])
    assert {part_of(n) for n in moved} == {"psi", "own"}


def test_what_is_uploaded_comes_from_the_pairs_alone(trial):
    run = trial("meta-har", local_epochs=2)
    client, start = run.federation.clients[0], run.starts()[0]
    phases = run.algorithm.client_phases()
    whole, _ = moved_by(run, client, start, phases)
    pairs, _ = moved_by(run, client, start, phases[:2])
    sent = run.algorithm.upload(whole, client)
    assert {part_of(n) for n in sent} == {"f"}
    assert all(torch.equal(sent[n], pairs[n]) for n in sent)


def test_the_personal_model_predicts(trial):
    run = trial("meta-har")
    client, params = run.federation.clients[0], run.train()[0]
    batch = gather(client.task, client.test_rows)
    logits = run.algorithm.predict(params, batch.inputs)
    without_shared = {n: t for n, t in params.items() if part_of(n) in ("own", "psi")}
    torch.testing.assert_close(run.algorithm.predict(without_shared, batch.inputs), logits)
    torch.testing.assert_close(
        run.algorithm.loss(params, batch, Context(params, 0)), F.cross_entropy(logits, batch.labels)
    )


@pytest.mark.parametrize("head", ["kept", "fresh"])
def test_a_fresh_head_forgets_the_one_before(trial, head):
    run = trial("meta-har", head=head)
    client, start = run.federation.clients[0], run.starts()[0]
    other = {**start, "psi.weight": start["psi.weight"] + 1.0}
    phases = run.algorithm.client_phases()
    a, b = (moved_by(run, client, s, phases)[0]["psi.weight"] for s in (start, other))
    assert torch.equal(a, b) == (head == "fresh")


def test_pairs_bring_a_class_together(mixed_federation, trial):
    run = trial("meta-har", local_epochs=20)
    client, start = mixed_federation.clients[0], run.starts()[0]
    batch = gather(client.task, client.train_rows)
    trained, _ = moved_by(run, client, start, run.algorithm.client_phases()[:20])
    context = Context(start, 0)
    before, after = (float(run.algorithm.pair_loss(p, batch, context)) for p in (start, trained))
    assert after < 0.5 * before


def test_learns_without_a_common_label_space(mixed_federation):
    result = mf.run(mixed_federation, "meta-har", rounds=15, config={**SMALL, "local_epochs": 2})
    assert result.final["accuracy"] > 0.8
