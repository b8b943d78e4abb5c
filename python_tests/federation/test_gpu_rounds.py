"""Rounds on a GPU: the same as on a CPU, the same recorded or not, and nothing in them waits."""

import pytest
import torch

import mmfl_fast as mf
from mmfl_fast.federation import local_training
from mmfl_fast.federation.checkpoints import state_tensors

pytestmark = pytest.mark.gpu
# A method of each kind of model and step.
METHODS = ["fedavg", "m3fed", "mfcpl", "3fm", "smil", "fedmvp", "creamfl"]


def states(federation, method, config):
    run = mf.run(federation, method, rounds=2, config={**config, "evaluate_every": 2})
    return {name: tensor.cpu() for name, tensor in state_tensors(run.state).items()}


@pytest.mark.parametrize("method", METHODS)
def test_recorded_steps_change_no_bit(toy_federation, small, method):
    recorded, launched = (
        states(toy_federation, method, small(method, device="cuda", step_graphs=graphs))
        for graphs in ("auto", "off")
    )
    assert recorded.keys() == launched.keys()
    for name, tensor in recorded.items():
        assert torch.equal(tensor.nan_to_num(nan=-7.0), launched[name].nan_to_num(nan=-7.0)), name


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_ends_where_a_cpu_does(toy_federation, small, method):
    there, here = (states(toy_federation, method, small(method, device=d, chunk=3)) for d in ("cuda", "cpu"))
    tolerance = 5e-3 if method == "fedmvp" else 1e-3
    for name, tensor in here.items():
        torch.testing.assert_close(
            there[name], tensor, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("method", METHODS)
def test_training_waits_for_nothing(toy_federation, small, method, monkeypatch):
    rounds = []
    plain = local_training.train_stack

    def watched(clients, starts, phases, passes, round_index, stacks):
        # Steps are recorded in the first round, and that waits.
        torch.cuda.set_sync_debug_mode("error" if round_index else "default")
        try:
            return plain(clients, starts, phases, passes, round_index, stacks)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            rounds.append(round_index)

    monkeypatch.setattr(local_training, "train_stack", watched)
    # SMIL's and FedMVP's noise is another in every round and is recorded anew.
    graphs = "off" if method in ("smil", "fedmvp") else "auto"
    states(toy_federation, method, small(method, device="cuda", local_epochs=3, step_graphs=graphs))
    assert {0, 1} <= set(rounds)


def test_a_stack_keeps_within_its_budget(toy_federation, small):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    states(toy_federation, "m3fed", small("m3fed", device="cuda", memory_gib=0.01))
    # The rows, the state and the results are beside it.
    assert torch.cuda.max_memory_allocated() - before <= 0.02 * 2**30
