"""Whether the best method is better than the runner-up by more than seeds explain.

On one data set: paired t-test over seeds. Over the data sets: Wilcoxon's signed-rank test over all pairs of
data set and seed, which asks for no common scale of the differences. Both are two-sided. They are not
corrected for having chosen the best two, nor for the number of columns, and the pairs of one data set share
its rows: a small p is a hint, not a proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mmfl_fast.experiments.scores import ScoreTable, common_seeds

# With two pairs the t-test has one degree of freedom: even the level 0.1 then takes a ratio of 6.3.
MIN_SEEDS = 3
# Wilcoxon's p is at least 2 / 2^n: below six pairs no outcome reaches 0.05.
MIN_PAIRS = 6


@dataclass(frozen=True)
class PairedTest:
    """Outcome of one test.

    Attributes:
        column: data set, overall column, or ``"data sets x seeds"``.
        best: method with the best mean.
        runner_up: the second.
        difference: mean of the best minus the runner-up's, as a fraction.
        test: its name.
        pairs: how many.
        p: two-sided; None if it cannot be told.
        reason: why there is no p.
    """

    column: str
    best: str
    runner_up: str
    difference: float
    test: str
    pairs: int
    p: float | None
    reason: str | None = None

    @property
    def told(self) -> str:
        """The p-value, or why there is none."""
        if self.p is None:
            return f"cannot tell: {self.reason}"
        return f"{self.p:.3f}" if self.p >= 0.001 else "< 0.001"


def best_against_runner_up(table: ScoreTable) -> list[PairedTest]:
    """A t-test per column, and Wilcoxon's test over data sets and seeds for the best two overall.

    Args:
        table: of a metric of which more is better.

    Returns:
        One test per column that two methods have, then the one over the data sets if there are several.
    """
    tests = [_over_seeds(table, column) for column in range(len(table.columns))]
    if len(table.columns) > 2:
        tests.append(_over_data_sets(table))
    return [test for test in tests if test is not None]


def _over_seeds(table: ScoreTable, column: int) -> PairedTest | None:
    two = _best_two(table, column)
    if two is None:
        return None
    differences = _differences(table, *two, column)
    p, reason = None, None
    if len(differences) < MIN_SEEDS:
        reason = f"{len(differences)} seeds, {MIN_SEEDS} are needed"
    elif np.ptp(differences) < 1e-12:
        reason = "every seed has the same difference"
    else:
        p = float(stats.ttest_1samp(differences, 0).pvalue)
    return PairedTest(
        table.columns[column], *two, _mean(differences), "paired t-test", len(differences), p, reason
    )


def _over_data_sets(table: ScoreTable) -> PairedTest | None:
    two = _best_two(table, len(table.columns) - 1)
    if two is None:
        return None
    differences = np.concatenate([_differences(table, *two, c) for c in range(len(table.columns) - 1)])
    unequal = differences[differences != 0]
    p, reason = None, None
    if len(unequal) < MIN_PAIRS:
        reason = f"{len(unequal)} pairs that differ, {MIN_PAIRS} are needed"
    else:
        p = float(stats.wilcoxon(unequal).pvalue)
    return PairedTest(
        "data sets x seeds", *two, _mean(differences), "Wilcoxon signed-rank", len(differences), p, reason
    )


def _best_two(table: ScoreTable, column: int) -> tuple[str, str] | None:
    means = {m: s[column].mean for m, s in table.rows.items() if not math.isnan(s[column].mean)}
    ranked = sorted(means, key=lambda method: -means[method])
    return (ranked[0], ranked[1]) if len(ranked) > 1 else None


def _differences(table: ScoreTable, best: str, runner_up: str, column: int) -> NDArray[np.float64]:
    first, second = table.rows[best][column], table.rows[runner_up][column]
    seeds = common_seeds([first, second])
    return np.array([first.by_seed[s] - second.by_seed[s] for s in seeds], dtype=np.float64)


def _mean(differences: NDArray[np.float64]) -> float:
    return float(differences.mean()) if len(differences) else math.nan
