import pytest
import torch

import mmfl_fast as mf
from mmfl_fast.algorithms.drift import squared_drift
from mmfl_fast.federation import Context
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.checkpoints import state_tensors


def test_drift_on_worked_values():
    start = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
    params = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor(6.0)}
    assert squared_drift(params, start) == 1 + 4 + 9
    assert squared_drift(start, start) == 0


def test_without_the_term_it_is_fedavg_to_the_bit(toy_federation, small):
    fedavg = mf.run(toy_federation, "fusion-fedavg", rounds=2, config=small("fusion-fedavg")).state
    fedprox = mf.run(toy_federation, "fedprox", rounds=2, config=small("fedprox", mu=0.0)).state
    expected, found = state_tensors(fedavg), state_tensors(fedprox)
    assert all(torch.equal(expected[n], found[n]) for n in expected)


@pytest.mark.parametrize("name", ["encoder.image.conv.0.weight", "fusion.score.weight", "head.1.bias"])
def test_the_term_pulls_every_part_to_what_was_broadcast(trial, name):
    gradients = {}
    for mu in (0.0, 0.5):
        run = trial("fedprox", mu=mu)
        client, start = run.federation.clients[0], run.starts()[0]
        moved = {**start, name: (start[name] + 0.25).requires_grad_()}
        loss = run.algorithm.loss(moved, gather(client.task, client.train_rows), Context(start, 0))
        gradients[mu] = torch.autograd.grad(loss, moved[name])[0]
    pull = gradients[0.5] - gradients[0.0]
    torch.testing.assert_close(pull, torch.full_like(pull, 0.5 * 0.25), atol=1e-5, rtol=1e-5)


def test_the_term_holds_clients_back(trial):
    drift = []
    for mu in (0.0, 5.0):
        run = trial("fedprox", mu=mu)
        drift.append(float(squared_drift(run.train()[0], run.starts()[0])))
    assert drift[1] < 0.5 * drift[0]
