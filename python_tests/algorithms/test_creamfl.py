import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.algorithms.creamfl import ensemble, matching_loss
from mmfl_fast.federation import Context, Uploads, part_of
from mmfl_fast.federation.batching import gather


def test_matching_on_worked_values():
    own, other = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # The first other modality tells the rows apart, the second does not.
    apart, alike = math.log(1 + math.exp(-2)), math.log(2)
    torch.testing.assert_close(matching_loss(own, [own], 0.5), torch.tensor(apart))
    torch.testing.assert_close(matching_loss(own, [own, other], 0.5), torch.tensor((apart + alike) / 2))
    assert matching_loss(own, [], 0.5) == 0


def test_the_ensemble_on_worked_values():
    common = {"common.a": torch.eye(2), "common.b": torch.eye(2)}
    clear, confused = torch.eye(2), torch.eye(2).flip(0)
    clients = [SimpleNamespace(modalities=held) for held in (("a",), ("a", "b"), ("b",))]
    rows = [{"code.a": clear}, {"code.a": confused, "code.b": confused}, {"code.b": clear}]
    found = ensemble(Uploads(clients, rows), common)
    # Scores log softmax(1, 0) at the own row: the first entry for who is clear, the second for who is not.
    share = math.e / (math.e + 1)
    expected = torch.tensor([[share, 1 - share], [1 - share, share]])
    torch.testing.assert_close(found["a"], expected)
    torch.testing.assert_close(found["b"], expected)
    alone = ensemble(Uploads(clients[:1], rows[:1]), common)
    assert list(alone) == ["a"]
    torch.testing.assert_close(alone["a"], clear)


def test_with_all_weights_zero_the_model_is_that_of_fedavg(toy_federation, small):
    off = small("creamfl", contrast=0.0, distillation=0.0)
    creamfl = mf.run(toy_federation, "creamfl", rounds=3, config=off).state.models[0]
    fedavg = mf.run(toy_federation, "fusion-fedavg", rounds=3, config=small("fusion-fedavg")).state.models[0]
    assert all(torch.equal(fedavg[n], creamfl[n]) for n in fedavg)


def test_public_rows_are_complete_training_rows_and_stay_with_their_owners(trial, toy_federation):
    federation = data.with_missing(toy_federation, rate=0.5, level="sample", seed=1)
    (task,) = federation.tasks
    run = trial("creamfl", federation=federation, public_share=0.25)
    rows = run.state.public[0]["rows"]
    complete = task.present.all(dim=1) & task.is_train
    assert 0 < int(complete.sum()) < int(task.is_train.sum())
    assert len(rows) == len(rows.unique()) == round(0.25 * int(complete.sum()))
    assert complete[rows].all()
    result = mf.run(federation, "creamfl", rounds=1, config={"public_share": 0.25, "width": 4, "heads": 1})
    assert result.history[0]["public_rows"] == len(rows)
    assert result.history[0]["samples_seen"] == sum(c.num_train for c in federation.clients)


def test_public_rows_take_turns(trial, toy_federation):
    run = trial("creamfl", federation=toy_federation, public_share=0.2, public_batch=8)
    rows = run.state.public[0]["rows"]
    assert len(rows) > 8
    new = run.aggregate(run.train())
    (task,) = toy_federation.tasks
    for state, used in ((run.state, rows[:8]), (new, rows.roll(-8)[:8])):
        received = run.received(state, toy_federation.clients[0])
        assert torch.equal(received["public.left"], task.inputs["left"][used])
        assert "public.labels" not in received


def test_a_federation_without_complete_rows_is_refused(small):
    present = {"x": np.array([True, False] * 10), "y": np.array([False, True] * 10)}
    values = {"x": np.ones((20, 3)), "y": np.ones((20, 2))}
    federation = data.from_arrays(values, np.arange(20) % 2, np.repeat([0, 1], 10), present=present)
    with pytest.raises(ValueError, match="no training row with all of its modalities x, y"):
        mf.run(federation, "creamfl", rounds=1, config=small("creamfl"))


def gradient_of_contrast(run, index):
    """Of the contrast alone, by parameter, at parameters a little off the start."""
    client, start = run.federation.clients[index], run.starts()[index]
    batch = gather(client.task, client.train_rows)
    leaves = {n: (t + 0.01).requires_grad_() for n, t in start.items() if part_of(n) in run.algorithm.trained}
    losses = []
    for algorithm in (run.algorithm, mf.algorithms.get("fusion-fedavg")(run.algorithm.config)):
        losses.append(algorithm.loss({**start, **leaves}, batch, Context(start, 1)))
    found = torch.autograd.grad(losses[0] - losses[1], list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("absent", ["mask", "zero-fill"])
def test_the_contrast_reaches_the_encoders_of_modalities_held_alone(trial, toy_federation, absent):
    federation = data.with_missing(toy_federation, rate=0.8, level="client", seed=1)
    run = trial("creamfl", federation=federation, absent=absent)
    for client in federation.clients:
        gradient = gradient_of_contrast(run, client.index)
        for modality in ("left", "right"):
            own = [g for n, g in gradient.items() if n.startswith(f"encoder.{modality}.")]
            norm = torch.cat([g.flatten() for g in own]).norm()
            assert (norm > 1e-4) == (modality in client.modalities)
        assert gradient["projection.0.weight"].norm() > 1e-4


def test_the_servers_steps_draw_the_model_to_the_ensemble(trial, toy_federation):
    params = trial("creamfl", federation=toy_federation).train()
    gaps = []
    for weight in (0.0, 1.0):
        run = trial("creamfl", federation=toy_federation, distillation=weight, server_steps=10)
        rows = [run.algorithm.upload(p, c) for p, c in zip(params, toy_federation.clients, strict=True)]
        targets = ensemble(Uploads(toy_federation.clients, rows), run.state.common[0])
        start = run.starts()[0]
        values = {m: start[f"public.{m}"] for m in targets}
        own = run.algorithm.represent(run.aggregate(params).models[0], values, start["held"])
        gaps.append(float(sum((own[m] - u).square().sum() for m, u in targets.items())))
    assert gaps[1] < 0.9 * gaps[0]


def test_the_previous_model_takes_part_once_there_is_one(trial, toy_federation):
    run = trial("creamfl", federation=toy_federation)
    client, start = toy_federation.clients[3], run.starts()[3]
    batch = gather(client.task, client.train_rows)
    previous = {n: t + 0.1 * torch.randn(t.shape) for n, t in start.items() if part_of(n) == "own"}
    none, one, other = (
        run.algorithm.loss(
            {**start, **own, "previous.exists": torch.tensor(exists)}, batch, Context(start, 1)
        )
        for own, exists in ((previous, 0.0), (previous, 1.0), ({}, 1.0))
    )
    # Against a previous model like the global one a row is told from neither: gamma ln 2 in both modalities.
    torch.testing.assert_close(other - none, torch.tensor(0.5 * math.log(2)), atol=1e-5, rtol=1e-5)
    assert abs(float(one - other)) > 1e-4
