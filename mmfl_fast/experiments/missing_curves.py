"""Scores over the rate of missing modalities: how far ahead a method is, and when it breaks down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmfl_fast.experiments.scores import Metric, Score, ScoreTable, common_seeds

MISSING_RATE = "missing.rate"
# A method is broken where it keeps less than this share of its own score at the lowest rate.
BREAKING_SHARE = 0.9


@dataclass(frozen=True)
class Gap:
    """A method minus the best method of another algorithm, at one rate.

    Attributes:
        best: label of that other method.
        difference: seed by seed, over the seeds that both have.
    """

    best: str
    difference: Score

    def __str__(self) -> str:
        metric = self.difference.metric
        std = self.difference.std
        told = f"{metric.scale * self.difference.mean:+.{metric.digits}f}"
        return f"{told}{'' if std is None else f' ± {metric.text(std)}'} ({self.best})"


@dataclass(frozen=True)
class MissingCurves:
    """One metric over the missing rates, in one setting of the other axes.

    Attributes:
        metric: what is shown.
        setting: key -> value of the other axes.
        columns: data sets, then the overall score.
        rates: ascending, at least two.
        curves: method -> rate -> one score per column; a rate without a result is absent.
    """

    metric: Metric
    setting: Mapping[str, Any]
    columns: tuple[str, ...]
    rates: tuple[float, ...]
    curves: Mapping[str, Mapping[float, tuple[Score, ...]]]

    @property
    def shown(self) -> list[int]:
        """Positions of the columns that say something of their own: of one data set, not the overall one."""
        return [0] if len(self.columns) == 2 else list(range(len(self.columns)))

    def score(self, method: str, rate: float, column: int) -> Score:
        """The score of a method; one without seeds where there is none."""
        scores = self.curves[method].get(rate)
        return Score({}, self.metric) if scores is None else scores[column]

    def table(self, column: int) -> ScoreTable:
        """Methods by rates, of one data set or overall."""
        title = f"{self.metric.title}, {self.columns[column]}, over {MISSING_RATE}"
        rows = {m: tuple(self.score(m, rate, column) for rate in self.rates) for m in self.curves}
        rates = tuple(f"{rate:g}" for rate in self.rates)
        return ScoreTable(replace(self.metric, title=title), rates, rows, {}, self.setting)

    def gap(self, method: str, rate: float, column: int) -> Gap | None:
        """How far a method is above the best method of another algorithm; None where either has no score."""
        others = [m for m in self.curves if _algorithm(m) != _algorithm(method)]
        means = {m: self.score(m, rate, column).mean for m in others}
        means = {m: mean for m, mean in means.items() if not math.isnan(mean)}
        if not means:
            return None
        best = max(means, key=lambda m: means[m])
        own, other = self.score(method, rate, column), self.score(best, rate, column)
        seeds = common_seeds([own, other])
        difference = {seed: own.by_seed[seed] - other.by_seed[seed] for seed in seeds}
        return Gap(best, Score(difference, self.metric)) if difference else None

    def breaking_point(self, method: str, column: int) -> float | None:
        """The first rate at which a method is below BREAKING_SHARE of its own score at the lowest rate.

        Returns:
            The rate; None if there is none; NaN if a score that would tell is absent.
        """
        means = [self.score(method, rate, column).mean for rate in self.rates]
        for rate, mean in zip(self.rates, means, strict=True):
            if math.isnan(mean):
                return math.nan
            if mean < BREAKING_SHARE * means[0]:
                return rate
        return None

    def breaking_point_told(self, method: str, column: int) -> str:
        """The breaking point as printed."""
        point = self.breaking_point(method, column)
        if point is None:
            return f"above {self.rates[-1]:g}"
        return "n/a" if math.isnan(point) else f"{point:g}"

    def gap_rows(self, column: int) -> list[tuple[str, list[str]]]:
        """Methods with their gap at every rate and their breaking point, as printed."""
        rows = []
        for method in self.curves:
            gaps = [self.gap(method, rate, column) for rate in self.rates]
            told = ["n/a" if gap is None else str(gap) for gap in gaps]
            rows.append((method, [*told, self.breaking_point_told(method, column)]))
        return rows

    @property
    def gap_columns(self) -> list[str]:
        """Header of :meth:`gap_rows`."""
        return [*(f"{rate:g}" for rate in self.rates), "breaking point"]

    def gap_title(self, column: int) -> str:
        """What the numbers of :meth:`gap_rows` are."""
        return (
            f"{self.table(column).title}: points above the best method of another algorithm (its name in "
            f"brackets), and the breaking point, the first rate at which a method is below "
            f"{BREAKING_SHARE:.0%} of its own score at {self.rates[0]:g}"
        )


def missing_curves(tables: Sequence[ScoreTable]) -> list[MissingCurves]:
    """Join the tables of the missing rates, metric by metric and setting by setting of the other axes.

    Args:
        tables: of all settings of a comparison; those without a missing rate are passed over.

    Returns:
        Curves of at least two rates; none if nothing was compared over missing rates.
    """
    groups: dict[tuple[str, str], list[ScoreTable]] = {}
    for table in tables:
        rate = table.setting.get(MISSING_RATE)
        if isinstance(rate, (int, float)) and not isinstance(rate, bool):
            groups.setdefault((repr(_others(table)), table.metric.name), []).append(table)
    return [_joined(group) for group in groups.values() if len(group) > 1]


def _joined(tables: Sequence[ScoreTable]) -> MissingCurves:
    ordered = sorted(tables, key=lambda table: float(table.setting[MISSING_RATE]))
    first = ordered[0]
    curves: dict[str, dict[float, tuple[Score, ...]]] = {}
    for table in ordered:
        for method, scores in table.rows.items():
            own = curves.setdefault(method, {})
            if table.columns == first.columns:
                own[float(table.setting[MISSING_RATE])] = scores
    rates = tuple(float(table.setting[MISSING_RATE]) for table in ordered)
    return MissingCurves(first.metric, _others(first), first.columns, rates, curves)


def _others(table: ScoreTable) -> dict[str, Any]:
    return {key: value for key, value in table.setting.items() if key != MISSING_RATE}


def _algorithm(method: str) -> str:
    return method.partition(",")[0]
