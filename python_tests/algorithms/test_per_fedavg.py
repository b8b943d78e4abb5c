import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

import mmfl_fast as mf
from mmfl_fast.algorithms.batch_parts import interleaved
from mmfl_fast.federation import Context, part_of
from mmfl_fast.federation.batching import gather, gather_stacked
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.nn import meta_gradient

SMALL = {"width": 12, "operator_rows": 8, "layers": 2, "batch_size": 8, "local_epochs": 1}
ALPHA = 0.3


def doubled(params):
    return {n: t.double() for n, t in params.items()}


def cross_entropy_of(run, params, part):
    """Cross-entropy on a part of a batch as a function of ``f`` alone, in float64."""
    inputs = part.inputs._replace(values={n: x.double() for n, x in part.inputs.values.items()})
    rest = {n: t for n, t in params.items() if part_of(n) in ("phi", "T", "psi")}

    def value(f):
        # The copy that predicts is set to f, so that predict() means this f.
        copy = {f"own.{n}": t for n, t in f.items()}
        return F.cross_entropy(run.algorithm.predict({**rest, **f, **copy}, inputs), part.labels)

    return value


@pytest.mark.parametrize("mode", ["first-order", "hessian-free"])
def test_the_meta_gradient_is_the_papers(trial, mode, monkeypatch):
    # Small enough that in float64 the finite difference is the Hessian's product to seven digits.
    monkeypatch.setattr(meta_gradient, "_FINITE_DIFFERENCE_STEP", 1e-6)
    run = trial("per-fedavg", learning_rate=ALPHA, meta_gradient=mode)
    client, params = run.federation.clients[2], doubled(run.starts()[2])
    params["own.f.0.weight"] = params["own.f.0.weight"] + 1.0  # must play no part
    batch = gather(client.task, client.train_rows)
    batch = batch._replace(
        inputs=batch.inputs._replace(values={n: x.double() for n, x in batch.inputs.values.items()})
    )
    learner = {n: t for n, t in params.items() if n.startswith("f.")}

    first, second, *third = (
        cross_entropy_of(run, params, p) for p in interleaved(batch, 2 + (mode[0] == "h"))
    )
    inner = torch.func.grad(first)(learner)
    expected = torch.func.grad(second)({n: t - ALPHA * inner[n] for n, t in learner.items()})
    if third:
        (curved,) = torch.func.vjp(torch.func.grad(third[0]), learner)[1](expected)
        assert max(float((ALPHA * t).abs().max()) for t in curved.values()) > 0.01
        expected = {n: g - ALPHA * curved[n] for n, g in expected.items()}

    leaves = {n: t.clone().requires_grad_() for n, t in learner.items()}
    loss = run.algorithm.meta_loss({**params, **leaves}, batch, Context(params, 0))
    for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_interleaved_parts_are_disjoint_and_complete(toy_federation):
    client = toy_federation.clients[0]
    batch = gather(client.task, client.train_rows[:11])
    parts = interleaved(batch, 3)
    assert [len(p.labels) for p in parts] == [4, 4, 3]
    for number, part in enumerate(parts):
        assert torch.equal(part.labels, batch.labels[number::3])
        assert torch.equal(part.inputs.present, batch.inputs.present[number::3])
        assert torch.equal(part.inputs.values["left"], batch.inputs.values["left"][number::3])


@pytest.mark.parametrize("mode", ["first-order", "hessian-free"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_padding_changes_no_meta_gradient(trial, mode, rows):
    run = trial("per-fedavg", meta_gradient=mode)
    client, start = run.federation.clients[0], run.starts()[0]
    short = client.train_rows[:rows]
    both = pad_sequence([short, client.train_rows[:8]], batch_first=True, padding_value=-1)
    stacked = gather_stacked(client.task, both)
    padded = stacked._replace(
        inputs=stacked.inputs._replace(
            values={n: x[0] for n, x in stacked.inputs.values.items()}, present=stacked.inputs.present[0]
        ),
        labels=stacked.labels[0],
    )
    learner = {n: t for n, t in start.items() if n.startswith("f.")}
    gradients = [
        torch.func.grad(lambda f, b=b: run.algorithm.meta_loss({**start, **f}, b, Context(start, 0)))(learner)
        for b in (gather(client.task, short), padded)
    ]
    for name in learner:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-5, rtol=1e-4)


def moved_by(client, start, phases):
    (result,) = train_clients([client], [start], phases, 0, 0)
    return result.params, {part_of(n) for n in start if not torch.equal(start[n], result.params[n])}


def test_each_phase_moves_its_parts_and_no_other(trial):
    run = trial("per-fedavg")
    client, start = run.federation.clients[0], run.starts()[0]
    meta, adapt = run.algorithm.client_phases()
    params, moved = moved_by(client, start, [meta])
    assert moved == {"f", "own"}
    learner = [n for n in params if part_of(n) == "f"]
    assert all(torch.equal(params[n], params[f"own.{n}"]) for n in learner)
    adapted, moved = moved_by(client, params, [adapt])
    assert moved == {"own", "phi", "T", "psi"}
    sent = run.algorithm.upload(adapted, client)
    assert set(sent) == set(learner)
    assert all(torch.equal(sent[n], params[n]) for n in learner)


def test_the_server_averages_the_learner_by_data(trial):
    run = trial("per-fedavg")
    params = run.train()
    new = run.aggregate(params)
    sizes = torch.tensor([c.num_train for c in run.federation.clients], dtype=torch.float64)
    for name in run.state.shared:
        stacked = torch.stack([p[name].double() for p in params])
        expected = torch.tensordot(sizes / sizes.sum(), stacked, dims=1).float()
        torch.testing.assert_close(new.shared[name], expected, atol=1e-6, rtol=1e-5)


def test_the_adapted_copy_predicts(trial):
    run = trial("per-fedavg")
    client, params = run.federation.clients[0], run.train()[0]
    inputs = gather(client.task, client.test_rows).inputs
    plain = trial("cross-fedavg").algorithm
    adapted = {**params, **{n: params[f"own.{n}"] for n in params if part_of(n) == "f"}}
    assert torch.equal(run.algorithm.predict(params, inputs), plain.predict(adapted, inputs))
    assert not torch.equal(run.algorithm.predict(params, inputs), plain.predict(params, inputs))


def test_the_hessian_changes_the_learner(mixed_federation):
    first, free = (
        mf.run(mixed_federation, "per-fedavg", rounds=1, config={**SMALL, "meta_gradient": mode}).state
        for mode in ("first-order", "hessian-free")
    )
    assert not torch.equal(first.shared["f.0.weight"], free.shared["f.0.weight"])
