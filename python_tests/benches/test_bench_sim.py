from importlib.util import find_spec

import pytest
import torch
from typer.testing import CliRunner

from mmfl_fast import algorithms
from mmfl_fast.benches import peers, sim
from mmfl_fast.benches.peers.problem import module, train
from mmfl_fast.cli import app

SMALL = "MLP 784"


@pytest.fixture(autouse=True)
def _few_clients(monkeypatch):
    monkeypatch.setattr(sim, "_CLIENTS", 4)


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "sim", "--only", SMALL, "--seconds", "0", *arguments])


class Loop:
    """A simulator that does what the plain loop does, or a little more."""

    def __init__(self, problem, learning_rate=None):
        self._problem, self._rate = problem, learning_rate or problem.learning_rate

    def round(self):
        models = [module(self._problem.start) for _ in self._problem.inputs]
        for model, x, y in zip(models, self._problem.inputs, self._problem.labels, strict=True):
            train(model, x, y, self._rate)
        return [
            torch.stack(ps).mean(dim=0).detach() for ps in zip(*(m.parameters() for m in models), strict=True)
        ]

    def close(self):
        pass


def test_other_simulators_stand_beside_the_loop(monkeypatch):
    monkeypatch.setattr(sim, "installed", lambda: {"other 1.0": Loop})
    shown = bench()
    assert shown.exit_code == 0, shown.output
    assert "native / plain" in shown.output
    assert "other 1.0 / plain" in shown.output
    assert "other" not in bench("--no-peers").output


def test_a_simulator_that_trains_otherwise_is_not_timed(monkeypatch):
    monkeypatch.setattr(sim, "installed", lambda: {"other 1.0": lambda p: Loop(p, 1.001 * p.learning_rate)})
    shown = bench()
    assert shown.exit_code == 1
    assert "WRONG RESULT, not timed" in shown.output


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("package", peers.PEERS)
def test_an_installed_simulator_trains_as_the_loop_does(package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (name,) = (name for name in peers.installed() if name.startswith(f"{package} "))
    problem = peers.Problem(
        inputs=torch.randn(3, 2, 5, 8),
        labels=torch.randint(4, (3, 2, 5)),
        start=[torch.randn(6, 8), torch.randn(6), torch.randn(4, 6), torch.randn(4)],
        learning_rate=0.1,
        threads=1,
    )
    peer = peers.installed()[name](problem)
    try:
        for found, expected in zip(peer.round(), Loop(problem).round(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    finally:
        peer.close()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedmvp", {"width": 8, "batch_size": 8, "local_epochs": 3, "weight_decay": 0.1}),
        ("smil", {"head_width": 6, "local_epochs": 2}),
    ],
)
def test_the_plain_loop_takes_the_steps_of_the_engine(toy_federation, method, options):
    algorithm = algorithms.get(method)(algorithms.get(method).Config(**options))
    training = sim.LocalRound(sim.Workload(method, toy_federation, algorithm))
    for ours, plain in zip(training.engine(native=False), training.plain(), strict=True):
        found, expected = (torch.cat([t.flatten() for t in p.values()]) for p in (ours.params, plain))
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_it_needs_the_extension(monkeypatch):
    monkeypatch.setattr(sim.extension, "missing", "not built")
    assert isinstance(bench().exception, ImportError)
