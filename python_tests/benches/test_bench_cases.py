import pytest
import torch

from mmfl_fast.benches import cross_gram_sq, gram, mix, ops, prototype_loss
from mmfl_fast.benches.machine import Rates
from mmfl_fast.benches.measure import measure
from mmfl_fast.benches.registry import error_of

CPU, GPU = ops.cases("cpu"), ops.cases("cuda")
DISTINCT = list({case.name: case for case in [*CPU, *GPU]}.values())

# These give something else than the case's result: a floor, or a part of the work.
NOT_THE_RESULT = {gram.SUM, gram.CORRCOEF, mix.SUM}


@pytest.fixture(autouse=True)
def _one_thread(set_threads):
    set_threads(1)


def by_name(case):
    return case.name


def test_names_are_unique():
    for cases in (CPU, GPU):
        assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("primitive", ["gram", "mix", "cross_gram_sq", "prototype_loss"])
def test_the_cases_of_a_primitive_can_be_chosen(primitive):
    chosen = ops._selected(GPU, primitive)
    assert chosen == [case for case in GPU if case.primitive == primitive]


@pytest.mark.parametrize("case", DISTINCT, ids=by_name)
def test_every_case_is_right_at_a_small_size(case, small):
    assert error_of(small(case, memory=False).calls("cpu")) <= case.tolerance


@pytest.mark.parametrize("case", DISTINCT, ids=by_name)
def test_baselines_compute_what_they_are_compared_with(case, small):
    calls = small(case, memory=False).calls("cpu")
    exact = calls.exact()
    for name, baseline in calls.baselines.items():
        if name in NOT_THE_RESULT or (name == gram.PRODUCT and case.name.startswith("angular")):
            continue
        error = (calls.result(baseline()).double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-5, name


@pytest.mark.parametrize("case", DISTINCT, ids=by_name)
def test_every_target_is_of_something_that_is_measured(case, small):
    rates = Rates(copy=1e6, multiply={torch.float32: 1e9, torch.bfloat16: 1e9})
    line = measure(small(case, memory=False), "native", "cpu", seconds=0, rates=rates)
    assert "failed" not in line
    assert "not_measured" not in line
    missing = {target["quantity"] for target in line["targets"] if target["measured"] is None}
    assert {m for m in missing if not m.startswith("extra memory")} <= {prototype_loss.COMPILED}
    assert line["baselines"]["reference"]["p50"] > 0


def test_every_primitive_has_a_case_of_its_overhead():
    tiny = [case for case in CPU if "overhead" in case.name]
    assert {case.primitive for case in tiny} == {"gram", "mix", "cross_gram_sq", "prototype_loss"}


def test_the_expressions_of_cka_agree():
    x = torch.randn(5, 7, 3)
    expected = cross_gram_sq._stacked_grams(x.double())
    for form in cross_gram_sq._EXPRESSIONS.values():
        torch.testing.assert_close(form(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_chunks_add_up(monkeypatch):
    monkeypatch.setattr(prototype_loss, "_CHUNK", 3)
    tensors = torch.randn(8, 5), torch.randint(0, 4, (8,)), torch.randn(4, 5)
    whole = prototype_loss._gradients(prototype_loss._cross_entropy, *tensors)
    torch.testing.assert_close(prototype_loss._gradients_in_chunks(*tensors), whole)
