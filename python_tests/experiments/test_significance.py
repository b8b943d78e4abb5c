"""Paired tests against SciPy and against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from mmfl_fast.experiments.scores import ACCURACY, score_table
from mmfl_fast.experiments.significance import best_against_runner_up


def results(values: dict[str, np.ndarray], names: tuple[str, ...] = ("x", "y")) -> dict:
    """Accuracies ``[seeds, data sets]`` of each method."""
    return {
        method: {
            seed: {
                "accuracy": float(row.mean()),
                "per_dataset": {name: {"accuracy": float(v)} for name, v in zip(names, row, strict=True)},
            }
            for seed, row in enumerate(rows)
        }
        for method, rows in values.items()
    }


def outcome(values: dict[str, np.ndarray], names: tuple[str, ...] = ("x", "y")) -> dict:
    table = score_table(results(values, names), ACCURACY)
    return {test.column: test for test in best_against_runner_up(table)}


def test_t_test_of_three_seeds_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, std 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2).
    a = np.array([[0.51], [0.62], [0.73]])
    told = outcome({"c": a - 0.2, "b": a - [[0.01], [0.02], [0.03]], "a": a}, ("x",))["x"]
    assert (told.best, told.runner_up, told.test, told.pairs) == ("a", "b", "paired t-test", 3)
    assert told.difference == pytest.approx(0.02)
    assert told.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_tests_are_those_of_scipy() -> None:
    drawn = np.random.default_rng(0).normal(0.6, 0.1, size=(2, 4, 3))
    a, b = drawn[0] + 0.05, drawn[1]
    told = outcome({"a": a, "b": b}, ("x", "y", "z"))
    for column, name in enumerate(("x", "y", "z")):
        assert told[name].p == pytest.approx(stats.ttest_rel(a[:, column], b[:, column]).pvalue)
    assert told["all clients"].p == pytest.approx(stats.ttest_rel(a.mean(1), b.mean(1)).pvalue)
    over = told["data sets x seeds"]
    assert (over.test, over.pairs) == ("Wilcoxon signed-rank", 12)
    assert over.p == pytest.approx(stats.wilcoxon((a - b).T.ravel()).pvalue)


def test_wilcoxon_of_six_equal_signs_is_two_in_sixty_four() -> None:
    b = np.full((3, 2), 0.5)
    told = outcome({"a": b + np.array([[0.01, 0.02], [0.03, 0.04], [0.05, 0.06]]), "b": b})
    assert told["data sets x seeds"].p == pytest.approx(2 / 64)


def test_the_pairs_are_those_of_a_seed() -> None:
    rising = np.array([[0.5], [0.6], [0.7], [0.8]])
    better = rising + np.array([[0.01], [0.02], [0.01], [0.02]])
    together = outcome({"a": better, "b": rising}, ("x",))["x"]
    crossed = outcome({"a": better, "b": rising[::-1]}, ("x",))["x"]
    assert together.p < 0.05 < crossed.p


def test_too_few_seeds_are_told() -> None:
    a = np.array([[0.5, 0.6], [0.7, 0.8]])
    told = outcome({"a": a, "b": a - [[0.1, 0.1], [0.2, 0.1]]})
    assert told["x"].told == "cannot tell: 2 seeds, 3 are needed"
    assert told["data sets x seeds"].told == "cannot tell: 4 pairs that differ, 6 are needed"


def test_equal_differences_have_no_p() -> None:
    a = np.array([[0.5, 0.6], [0.7, 0.8], [0.1, 0.2]])
    for shift in (0.0, 0.1):
        told = outcome({"a": a, "b": a - shift})
        assert told["x"].told == "cannot tell: every seed has the same difference"


def test_one_method_has_no_test() -> None:
    assert outcome({"a": np.array([[0.5, 0.6]] * 3)}) == {}


def test_a_method_without_scores_is_not_the_runner_up() -> None:
    a = np.array([[0.5, 0.6], [0.7, 0.8], [0.6, 0.9]])
    told = outcome({"a": a, "b": np.full((3, 2), np.nan), "c": a - [[0.1], [0.2], [0.1]]})
    assert {test.runner_up for test in told.values()} == {"c"}


def test_small_p_is_told_as_a_bound() -> None:
    a = np.linspace(0.1, 0.9, 8)[:, None]
    told = outcome({"a": a + 0.05 + 1e-4 * np.arange(8)[:, None], "b": a}, ("x",))["x"]
    assert told.told == "< 0.001"
