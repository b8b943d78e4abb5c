from dataclasses import replace

import pytest
import torch

import mmfl_fast as mf
from mmfl_fast.algorithms.fedopt import FedOpt, FedOptConfig, FedOptState
from mmfl_fast.federation import ParameterTable, Uploads
from mmfl_fast.federation.checkpoints import state_tensors

NAME = "head.1.weight"


def steps(federation, movements, **options):
    """A model of one number, the state after each mean movement of the clients in turn."""
    algorithm = FedOpt(FedOptConfig(**options))
    tau = algorithm.config.adaptivity
    adaptive = algorithm.config.server_optimiser != "sgd"
    state = FedOptState(
        shared={},
        personal=ParameterTable({}),
        models=ParameterTable({0: {"x": torch.tensor(1.0)}}),
        task=torch.zeros(len(federation.clients), dtype=torch.int64),
        momentum=ParameterTable({0: {"x": torch.tensor(0.0)}}),
        variance=ParameterTable({0: {"x": torch.tensor(tau**2)}} if adaptive else {}),
    )
    states = []
    for movement in movements:
        x = state.models[0]["x"]
        rows = [{"x": x + movement - 0.1}, {"x": x + movement + 0.3}]
        weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
        state = algorithm.aggregate(state, Uploads(federation.clients[:2], rows), weights)
        tables = {"x": state.models, "momentum": state.momentum, "variance": state.variance}
        states.append({name: float(table[0]["x"]) for name, table in tables.items() if len(table)})
    return states


def test_sgd_on_worked_values(toy_federation):
    options = {"server_rate": 0.02, "server_momentum": 0.5, "learning_rate": 0.1}
    first, second = steps(toy_federation, [1.0, -2.0], **options)
    # m = 1, then 0.5 - 2; a rate of 0.02 is a fifth of the clients'.
    assert first == pytest.approx({"x": 1.2, "momentum": 1.0})
    assert second == pytest.approx({"x": 1.2 - 0.3, "momentum": -1.5})


def test_adam_on_worked_values(toy_federation):
    options = {"server_rate": 0.1, "server_momentum": 0.9, "second_moment": 0.75, "adaptivity": 1.0}
    first, second = steps(toy_federation, [2.0, 1.0], server_optimiser="adam", **options)
    # v = 0.75 + 0.25 * 4, then 0.75 * 1.75 + 0.25; m = 0.2, then 0.18 + 0.1.
    x = 1 + 0.1 * 0.2 / (1.75**0.5 + 1)
    assert first == pytest.approx({"x": x, "momentum": 0.2, "variance": 1.75})
    x += 0.1 * 0.28 / (1.5625**0.5 + 1)
    assert second == pytest.approx({"x": x, "momentum": 0.28, "variance": 1.5625})


def test_yogi_on_worked_values(toy_federation):
    options = {"server_rate": 0.1, "server_momentum": 0.9, "second_moment": 0.75, "adaptivity": 1.0}
    first, second = steps(toy_federation, [2.0, 1.0], server_optimiser="yogi", **options)
    # v = 1 + 0.25 * 4 since the square is larger, then 2 - 0.25 * 1 since it is smaller.
    x = 1 + 0.1 * 0.2 / (2**0.5 + 1)
    assert first == pytest.approx({"x": x, "momentum": 0.2, "variance": 2.0})
    x += 0.1 * 0.28 / (1.75**0.5 + 1)
    assert second == pytest.approx({"x": x, "momentum": 0.28, "variance": 1.75})


def test_the_rate_of_the_clients_without_momentum_is_fedavg(trial, toy_federation):
    run = trial(
        "fedopt", federation=toy_federation, server_rate=0.05, server_momentum=0.0, learning_rate=0.05
    )
    params = run.train()
    mean = trial("fusion-fedavg", federation=toy_federation).aggregate(params).models[0]
    for name, tensor in run.aggregate(params).models[0].items():
        torch.testing.assert_close(tensor, mean[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "yogi"])
def test_the_optimiser_remembers_earlier_rounds(trial, toy_federation, optimiser):
    run = trial("fedopt", federation=toy_federation, server_optimiser=optimiser)
    once = run.aggregate(run.train())
    still = [dict(once.models[0]) for _ in toy_federation.clients]
    again = replace(run, state=once).aggregate(still)
    assert not torch.equal(again.models[0][NAME], once.models[0][NAME])


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "yogi"])
def test_a_checkpoint_holds_the_optimiser(toy_federation, small, tmp_path, optimiser):
    config = small("fedopt", server_optimiser=optimiser)
    whole = mf.run(toy_federation, "fedopt", rounds=3, config=config)
    mf.run(toy_federation, "fedopt", rounds=2, out=tmp_path / "run", config=config)
    resumed = mf.run(toy_federation, "fedopt", rounds=3, out=tmp_path / "run", config=config, resume=True)
    expected, found = state_tensors(whole.state), state_tensors(resumed.state)
    assert {n.partition("/")[0] for n in expected} >= {"models", "momentum"}
    assert all(torch.equal(expected[n], found[n]) for n in expected)


def test_a_task_that_was_not_drawn_keeps_model_and_optimiser(trial):
    run = trial("fedopt", server_optimiser="adam")
    drawn = [c for c in run.federation.clients if c.task_index == 0]
    new = run.aggregate(run.train(drawn), drawn)
    for table in ("models", "momentum", "variance"):
        before, after = getattr(run.state, table), getattr(new, table)
        assert not torch.equal(before[0][NAME], after[0][NAME])
        assert all(torch.equal(before[1][n], after[1][n]) for n in before[1])
