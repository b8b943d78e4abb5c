from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmfl_fast.benches import measure as measuring
from mmfl_fast.benches import ops, prototype_loss, timing
from mmfl_fast.benches.machine import Rates
from mmfl_fast.benches.memory import extra_bytes
from mmfl_fast.benches.registry import BANDWIDTH, FLOOR, Calls, Case, Work, at_least, at_most, times_faster
from mmfl_fast.benches.timing import Contender, alternate

X = torch.arange(1.0, 5.0)


def toy(ours, baselines=None, targets=(), **options):
    calls = Calls(ours=ours, baselines=baselines or {}, exact=lambda: 2 * X.double(), **options)
    return Case("toy", "gram", lambda: calls, targets=targets)


def ticking(monkeypatch, milliseconds):
    """A clock by which each call takes what ``milliseconds`` says."""
    monkeypatch.setattr(timing, "_wall_milliseconds", lambda call, repeats: repeats * milliseconds[call])


def double():
    return 2 * X


def add():
    return X + X


@pytest.mark.parametrize(
    ("target", "met", "missed", "told"),
    [
        (at_most(2.0, "b"), 2.0, 2.01, "≤ 2"),
        (times_faster(15, "b"), 1 / 15, 1 / 14, "≤ 1/15"),
        (at_least(0.85, "b"), 0.85, 0.84, "≥ 0.85"),
    ],
)
def test_targets(target, met, missed, told):
    assert target.met(met)
    assert not target.met(missed)
    assert str(target) == told


def test_a_line_holds_ratios_and_judged_targets(monkeypatch):
    targets = (at_most(0.5, "add"), times_faster(3, "add"), at_most(1, "absent"))
    case = toy(double, {"add": add}, targets)
    ticking(monkeypatch, {double: 2.0, add: 5.0})
    line = measuring.measure(case, "native", "cpu", seconds=0, rates=None)
    assert line["ours"] == {"p20": 2.0, "p50": 2.0, "p80": 2.0}
    assert line["baselines"]["add"] == {"p20": 5.0, "p50": 5.0, "p80": 5.0, "ratio": 0.4}
    assert line["baselines"]["reference"]["ratio"] == 1.0
    assert [target["met"] for target in line["targets"]] == [True, False, None]
    assert line["targets"][0]["measured"] == 0.4


def test_shares_of_what_the_machine_can_do(monkeypatch):
    case = toy(double, work=Work(moved=600, flops=4000))
    ticking(monkeypatch, {double: 2.0})
    rates = Rates(copy=500.0, multiply={torch.float32: 2500.0})
    quantities = measuring.measure(case, "native", "cpu", seconds=0, rates=rates)["quantities"]
    assert quantities[BANDWIDTH] == pytest.approx(600 / 2 / 500)
    assert quantities[FLOOR] == pytest.approx(4000 / 2500 / 2)


@pytest.mark.parametrize("wrong", [lambda: 2.001 * X, lambda: X / 0 * 0], ids=["off", "nan"])
def test_a_wrong_result_is_not_timed(wrong):
    line = measuring.measure(toy(wrong), "native", "cpu", seconds=0, rates=None)
    assert not line["error"] <= line["tolerance"]
    assert "ours" not in line
    assert "baselines" not in line


def fails():
    raise RuntimeError("does not fit\nmore")


def is_broken():
    raise AssertionError


def test_a_baseline_that_cannot_run_costs_its_own_line_only():
    case = toy(double, {"add": add, "large": fails, "broken": is_broken}, (at_most(1, "large"),))
    line = measuring.measure(case, "native", "cpu", seconds=0, rates=None)
    assert line["not_measured"] == {
        "large": "RuntimeError: does not fit",
        "broken": "AssertionError: no message",
    }
    assert set(line["baselines"]) == {"add", "reference"}
    assert line["targets"][0]["met"] is None


@pytest.mark.parametrize(
    ("ours", "told"), [(fails, "RuntimeError: does not fit"), (is_broken, "AssertionError: no message")]
)
def test_a_case_that_cannot_run_says_so(ours, told):
    line = measuring.measure(toy(ours), "native", "cpu", seconds=0, rates=None)
    assert line["failed"] == told
    assert "ours" not in line


def test_turns_end_with_the_first_contender_and_slow_ones_leave(monkeypatch):
    def slow():
        pass

    turns = []
    cost = {double: 10.0, add: 1.0, slow: 500.0}

    def clock(call, repeats):
        turns.append(call)
        return repeats * cost[call]

    monkeypatch.setattr(timing, "_wall_milliseconds", clock)
    contenders = {
        name: Contender([call], "auto") for name, call in {"ours": double, "a": add, "b": slow}.items()
    }
    timings = alternate(contenders, "cpu", seconds=0.6)
    assert [turns.count(call) for call in (double, add, slow)] == [20, 20, 5]
    assert timings["b"].p50 == 500.0


def test_sets_of_inputs_take_turns(monkeypatch):
    turns = []
    monkeypatch.setattr(timing, "_wall_milliseconds", lambda call, _: turns.append(call) or 1.0)
    alternate({"ours": Contender([double, add], "auto")}, "cpu", seconds=0)
    assert turns == [double, add, double, add, double]


def test_a_primitive_without_a_kernel_is_skipped_with_the_reason(monkeypatch):
    everywhere = measuring.backends()["reference"]
    monkeypatch.setattr(measuring, "backends", lambda: {"native": everywhere, "triton": everywhere})
    monkeypatch.setattr(measuring, "_C", type("Extension", (), {"gram_cuda": None}))
    assert measuring.missing("gram", "native", "cuda") == ""
    assert measuring.missing("mix", "native", "cpu") == ""
    assert measuring.missing("mix", "native", "cuda") == "no CUDA kernel"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "mix" in name else name)
    assert measuring.missing("gram", "triton", "cuda") == ""
    assert measuring.missing("mix", "triton", "cuda") == "no Triton kernel"


def test_on_a_machine_without_a_gpu_a_backend_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measuring.missing("gram", "triton", "cuda") == measuring.backends()["triton"].reason


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_extra_memory_is_what_a_call_stores_beside_its_results():
    (case,) = (case for case in ops.cases("cpu") if "N=16384" in case.name and "fwd+bwd" in case.name)
    case = replace(case, arguments={**case.arguments, "rows": 8192})
    calls = case.calls("cpu", largest=2)
    stored = extra_bytes(case, calls, prototype_loss.CROSS_ENTROPY, "native", "cpu")
    logits = 8192 * 1000 * 4
    # The logits, their logarithmic softmax and its gradient.
    assert 2.5 * logits < stored < 4 * logits
