import pytest
import torch
import torch.nn.functional as F

from mmfl_fast.algorithms.batch_parts import interleaved
from mmfl_fast.federation import Context, part_of
from mmfl_fast.federation.batching import gather, shuffled_rows
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.streams import Purpose, stream

RATE = 0.02
VARIANTS = [(variant, order) for variant in ("maml", "meta-sgd") for order in ("second", "first")]


def float64(batch):
    values = {n: x.double() for n, x in batch.inputs.values.items()}
    return batch._replace(inputs=batch.inputs._replace(values=values))


def cross_entropy_of(run, params, part):
    """Cross-entropy on a part of a batch as a function of ``f`` alone."""
    rest = {n: t for n, t in params.items() if part_of(n) in ("phi", "T", "psi")}

    def value(f):
        copy = {f"own.{n}": t for n, t in f.items()}
        return F.cross_entropy(run.algorithm.predict({**rest, **copy}, part.inputs), part.labels)

    return value


def meta_gradient(run, params, batch, order, rates):
    """``grad_(theta, alpha) L_Q(theta - alpha o grad L_S(theta))``, the Hessian's product by itself."""
    learner = {n: t for n, t in params.items() if n.startswith("f.")}
    support, query = (cross_entropy_of(run, params, p) for p in interleaved(batch, 2))
    inner, product = torch.func.vjp(torch.func.grad(support), learner)
    outer = torch.func.grad(query)({n: t - rates[n] * inner[n] for n, t in learner.items()})
    of_rates = {f"rate.{n}": -outer[n] * inner[n] for n in learner}
    if order == "first":
        return {**outer, **of_rates}
    (curved,) = product({n: rates[n] * outer[n] for n in learner})
    assert max(float(t.abs().max()) for t in curved.values()) > 1e-4
    return {**{n: outer[n] - curved[n] for n in learner}, **of_rates}


def rates_of(params):
    """Meta-SGD's where there are any, not all alike."""
    return {
        n: params.get(f"rate.{n}", torch.full_like(t, RATE)) for n, t in params.items() if n.startswith("f.")
    }


@pytest.mark.parametrize(("variant", "order"), VARIANTS)
def test_the_query_gradient_is_the_papers(trial, variant, order):
    run = trial("fedmeta", learning_rate=RATE, variant=variant, order=order)
    client = run.federation.clients[2]
    start = {n: t.double() for n, t in run.starts()[2].items()}
    start |= {n: t * (1 + torch.rand_like(t)) for n, t in start.items() if part_of(n) == "rate"}
    batch = float64(gather(client.task, client.train_rows))
    # Where the learnt parts have gone to within the round must play no part: the gradient is theta's.
    away = {n: t + 1.0 if part_of(n) in ("f", "rate", "own") else t for n, t in start.items()}
    leaves = {n: t.clone().requires_grad_() for n, t in away.items() if part_of(n) in ("f", "rate")}
    assert any(part_of(n) == "rate" for n in leaves) == (variant == "meta-sgd")
    loss = run.algorithm.query_loss({**away, **leaves}, batch, Context(start, 0))
    expected = meta_gradient(run, start, batch, order, rates_of(start))
    for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(gradient, expected[name], atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(("variant", "order"), VARIANTS)
def test_a_client_sends_the_mean_query_gradient_at_what_it_received(trial, variant, order):
    run = trial("fedmeta", learning_rate=RATE, variant=variant, order=order, local_epochs=2)
    client, start = run.federation.clients[1], run.starts()[1]
    (params,) = run.train([client])
    sent = run.algorithm.upload(params, client)
    assert {part_of(n) for n in sent} == ({"f", "rate"} if variant == "meta-sgd" else {"f"})

    draw = stream(0, Purpose.BATCHES, 0, client.index)
    passes = [shuffled_rows(client, draw).split(8) for _ in range(4)]
    batches = [float64(gather(client.task, rows)) for batch in passes[2:] for rows in batch]
    assert len(batches) == 2 * 3
    # phi, T and psi as adapted, f and the rates as received.
    at = {n: (params[n] if part_of(n) in ("phi", "T", "psi") else t).double() for n, t in start.items()}
    found = [meta_gradient(run, at, batch, order, rates_of(at)) for batch in batches]
    for name in sent:
        expected = torch.stack([g[name] for g in found]).mean(0)
        torch.testing.assert_close(sent[name].double(), expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("variant", ["maml", "meta-sgd"])
def test_the_server_steps_on_the_plain_mean(trial, variant):
    run = trial("fedmeta", variant=variant, server_rate=0.7)
    params, clients = run.train(), run.federation.clients
    sent = [run.algorithm.upload(p, c) for p, c in zip(params, clients, strict=True)]
    new = run.aggregate(params)
    assert len({c.num_train for c in clients}) > 1
    for name, before in run.state.shared.items():
        mean = torch.stack([row[name].double() for row in sent]).mean(0)
        torch.testing.assert_close(new.shared[name].double(), before - 0.7 * mean, atol=1e-7, rtol=1e-6)


def test_adaptation_takes_the_learnt_rate_of_each_parameter(trial):
    run = trial("fedmeta", variant="meta-sgd", momentum=0.0, weight_decay=0.0, batch_size=1000)
    client, start = run.federation.clients[0], run.starts()[0]
    start |= {n: torch.rand(t.shape) for n, t in start.items() if part_of(n) == "rate"}
    (result,) = train_clients([client], [start], run.algorithm.client_phases()[:1], 0, 0)
    fit = cross_entropy_of(run, start, gather(client.task, client.train_rows))
    gradient = torch.func.grad(fit)({n: t for n, t in start.items() if n.startswith("f.")})
    for name, slope in gradient.items():
        expected = start[name] - start[f"rate.{name}"] * slope
        torch.testing.assert_close(result.params[f"own.{name}"], expected, atol=1e-6, rtol=1e-4)


def test_meta_sgd_begins_as_maml(trial):
    maml, learnt = (trial("fedmeta", variant=v).train()[0] for v in ("maml", "meta-sgd"))
    for name in (n for n in maml if part_of(n) in ("own", "phi", "T", "psi")):
        torch.testing.assert_close(maml[name], learnt[name], atol=1e-6, rtol=1e-5)


def test_each_phase_moves_its_parts_and_no_other(trial):
    run = trial("fedmeta", variant="meta-sgd", local_epochs=2)
    client, start = run.federation.clients[0], run.starts()[0]
    phases = run.algorithm.client_phases()
    assert [p.name for p in phases] == ["adapt", "adapt", "query", "query"]
    (adapted,) = train_clients([client], [start], phases[:2], 0, 0)
    moved = {n for n in start if not torch.equal(start[n], adapted.params[n])}
    assert {part_of(n) for n in moved} == {"phi", "T", "psi", "f", "own"}
    (queried,) = train_clients([client], [start], phases, 0, 0)
    moved = {n for n in start if not torch.equal(adapted.params[n], queried.params[n])}
    assert {part_of(n) for n in moved} == {"f", "rate"}


def test_the_adapted_copy_predicts(trial):
    run = trial("fedmeta")
    client = run.federation.clients[0]
    (params,) = run.train([client])
    phases = run.algorithm.client_phases()[:1]
    (adapted,) = train_clients([client], [run.starts()[0]], phases, 0, 0)
    inputs = gather(client.task, client.test_rows).inputs
    plain = trial("cross-fedavg").algorithm
    assert torch.equal(run.algorithm.predict(params, inputs), plain.predict(adapted.params, inputs))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_padding_changes_no_query_gradient(trial, rows):
    run = trial("fedmeta", variant="meta-sgd")
    client, start = run.federation.clients[0], run.starts()[0]
    batch = gather(client.task, client.train_rows[:rows])
    padded = batch._replace(
        inputs=batch.inputs._replace(
            values={n: F.pad(x, (0, 0) * (x.dim() - 1) + (0, 3)) for n, x in batch.inputs.values.items()},
            present=F.pad(batch.inputs.present, (0, 0, 0, 3)),
        ),
        labels=F.pad(batch.labels, (0, 3), value=-100),
    )
    learnt = {n: t for n, t in start.items() if part_of(n) in ("f", "rate")}
    a, b = (
        torch.func.grad(lambda p, b=b: run.algorithm.query_loss({**start, **p}, b, Context(start, 0)))(learnt)
        for b in (batch, padded)
    )
    for name in learnt:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4)
