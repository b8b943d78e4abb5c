"""Final scores of a comparison: methods by data sets, mean and standard deviation over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmfl_fast.data.arguments import require_choice

# Method -> seed -> what `RecordedRun.measured` says.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


@dataclass(frozen=True)
class Metric:
    """What a table shows.

    Attributes:
        name: its key in results.
        title: with its unit.
        overall: name of the column over all data sets.
        meaning: one sentence for whoever reads the number.
        scale: factor from results to the unit.
        digits: decimals.
        higher_is_better: which end is the best.
    """

    name: str
    title: str
    overall: str
    meaning: str
    scale: float = 100
    digits: int = 2
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """A value as printed."""
        return f"{self.scale * value:.{self.digits}f}"


ACCURACY = Metric(
    "accuracy",
    "Accuracy in %",
    "all clients",
    "Accuracy is that of each client's own model on its own test rows, as the mean over clients.",
)
MACRO_F1 = Metric(
    "macro_f1",
    "Macro F1 in %",
    "mean of data sets",
    "Macro F1 is the mean of the classes' F1 on a data set's pooled test rows.",
)
UAR = Metric(
    "uar",
    "Unweighted average recall in %",
    "mean of data sets",
    "Unweighted average recall is the mean of the classes' recall on a data set's pooled test rows.",
)
POOLED_ACCURACY = Metric(
    "pooled_accuracy",
    "Pooled accuracy in %",
    "all test rows",
    "Pooled accuracy is the share of all test rows that are predicted right, each by its client's model.",
)
SCORES = (ACCURACY, MACRO_F1, UAR, POOLED_ACCURACY)

CLIENT_PASS = Metric(
    "client_pass",
    "Time of a client's round in ms",
    "all clients",
    "Time is that of one client's round, all its passes.",
    1000,
    1,
    higher_is_better=False,
)
BYTES_UP = Metric(
    "bytes_up",
    "Sent up by a client in a round in kB",
    "all clients",
    "Sent up is what a client uploads in a round, mean over clients and rounds.",
    1e-3,
    1,
    higher_is_better=False,
)
BYTES_DOWN = Metric(
    "bytes_down",
    "Sent down to a client in a round in kB",
    "all clients",
    "Sent down is what a client starts a round from and does not have itself, mean over clients and rounds.",
    1e-3,
    1,
    higher_is_better=False,
)
COSTS = (CLIENT_PASS, BYTES_UP, BYTES_DOWN)

METRICS = {metric.name: metric for metric in (*SCORES, *COSTS)}


def metric_named(name: str) -> Metric:
    """Return the metric of a name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    return METRICS[require_choice("metric", name, METRICS)]


@dataclass(frozen=True)
class Score:
    """One method on one data set.

    Attributes:
        by_seed: seed -> score as in results; empty where the method has no such data set.
        metric: how it is printed.
    """

    by_seed: Mapping[int, float]
    metric: Metric = ACCURACY

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without one, or if a seed has NaN."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else math.nan

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (divisor n - 1); None for fewer than two."""
        if len(self.by_seed) < 2:
            return None
        return math.nan if math.isnan(self.mean) else statistics.stdev(self.by_seed.values())

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "n/a"
        return self.metric.text(self.mean) + ("" if self.std is None else f" ± {self.metric.text(self.std)}")


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one metric in one setting.

    Attributes:
        metric: what is shown.
        columns: data sets in the order of their first appearance, if the metric is told of each, then the
            overall score.
        rows: method -> one score per column, methods in the order given.
        steps: method -> optimiser steps of a client in a round, mean over clients, rounds and seeds; of
            methods whose results tell it.
        setting: key -> value; empty if the comparison has one setting.
    """

    metric: Metric
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Score, ...]]
    steps: Mapping[str, float]
    setting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the numbers are, in which setting, and over how many seeds."""
        where = "".join(f", {key}={value}" for key, value in self.setting.items())
        counts = sorted({len(scores[-1].by_seed) for scores in self.rows.values()})
        if counts == [1]:
            return f"{self.metric.title}{where}, one seed"
        told = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        return f"{self.metric.title}{where}, mean ± sample standard deviation over {told} seeds"

    @property
    def shows_steps(self) -> bool:
        """Whether the methods differ in their optimiser steps, which a reader then has to see."""
        return len(set(self.steps_told.values())) > 1

    @property
    def steps_told(self) -> dict[str, str]:
        """Method -> optimiser steps of a client in a round, as printed."""
        return {method: f"{steps:.1f}" for method, steps in self.steps.items()}

    def is_best(self, method: str, column: int) -> bool:
        """Whether no other method prints a better mean; with one method nothing is best."""
        # Compared as printed: two equal numbers are either both marked or neither is.
        means = {m: float(self.metric.text(scores[column].mean)) for m, scores in self.rows.items()}
        valid = [mean for mean in means.values() if not math.isnan(mean)]
        best = max if self.metric.higher_is_better else min
        return len(self.rows) > 1 and bool(valid) and means[method] == best(valid)


def score_table(results: Results, metric: Metric, setting: Mapping[str, Any] | None = None) -> ScoreTable:
    """Arrange results by method and data set.

    Args:
        results: method -> seed -> the metric, ``per_dataset`` (name -> the metric, unless it is told of all
            together only), and from comparisons ``steps_per_client``.
        metric: which score.
        setting: key -> value, for the title.

    Raises:
        ValueError: no result at all, one without the metric, or a data set named like the overall column.
    """
    if not any(results.values()):
        raise ValueError("results: expected at least one method with at least one seed; got none")
    datasets: list[str] = []
    for method, seeds in results.items():
        for seed, result in seeds.items():
            if metric.name not in result or "per_dataset" not in result:
                needed = f"needs {metric.name!r} and 'per_dataset'"
                raise ValueError(f"results[{method!r}][{seed}]: {needed}; got {sorted(result)}")
            told = [name for name, own in result["per_dataset"].items() if metric.name in own]
            datasets += [name for name in told if name not in datasets]
    if metric.overall in datasets:
        raise ValueError(f"results: a data set may not be named like the column {metric.overall!r}")

    def scores(seeds: Mapping[int, Mapping[str, Any]]) -> tuple[Score, ...]:
        per_dataset = [
            {
                s: r["per_dataset"][name][metric.name]
                for s, r in seeds.items()
                if metric.name in r["per_dataset"].get(name, {})
            }
            for name in datasets
        ]
        overall = {s: r[metric.name] for s, r in seeds.items()}
        return tuple(Score(by_seed, metric) for by_seed in (*per_dataset, overall))

    rows = {method: scores(seeds) for method, seeds in results.items()}
    steps = {
        method: statistics.fmean(r["steps_per_client"] for r in seeds.values())
        for method, seeds in results.items()
        if seeds and all("steps_per_client" in r for r in seeds.values())
    }
    return ScoreTable(metric, (*datasets, metric.overall), rows, steps, setting or {})


def score_tables(results: Results, setting: Mapping[str, Any] | None = None) -> list[ScoreTable]:
    """A table of each score and cost that was measured."""
    every = [result for seeds in results.values() for result in seeds.values()]
    told = [metric for metric in METRICS.values() if all(metric.name in result for result in every)]
    tables = [score_table(results, metric, setting) for metric in told]
    return [t for t in tables if any(not math.isnan(s[-1].mean) for s in t.rows.values())]


def common_seeds(scores: Sequence[Score]) -> list[int]:
    """Seeds that all of the scores have."""
    return sorted(set.intersection(*(set(score.by_seed) for score in scores)))
