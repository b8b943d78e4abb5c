"""Curves over the rate of missing modalities: the scores, and how far a method is above the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmfl_fast.experiments.missing_curves import MissingCurves
from mmfl_fast.experiments.plots.style import (
    INK,
    keep_percent,
    legend_of_methods,
    line_style,
    method_colours,
    panels,
)
from mmfl_fast.experiments.scores import Score

_X_LABEL = "rate of missing modalities"


def score_over_missing(curves: MissingCurves) -> Figure:
    """Final scores over the missing rates, one panel per data set: means with bands of one std over seeds."""
    figure, drawn = panels([curves.columns[i] for i in curves.shown], curves.metric.title, _X_LABEL)
    for axes, column in zip(drawn, curves.shown, strict=True):
        _draw_bands(axes, curves, partial(curves.score, column=column))
        keep_percent(axes)
    legend_of_methods(figure, curves.curves)
    return figure


def gap_over_missing(curves: MissingCurves) -> Figure | None:
    """Points above the best method of another algorithm, over the missing rates; bands as for the scores.

    Returns:
        The figure; None if all methods are of one algorithm.
    """

    def difference(method: str, rate: float, column: int) -> Score:
        gap = curves.gap(method, rate, column)
        return Score({}, curves.metric) if gap is None else gap.difference

    every = [difference(m, r, c) for m in curves.curves for r in curves.rates for c in curves.shown]
    if not any(score.by_seed for score in every):
        return None
    figure, drawn = panels([curves.columns[i] for i in curves.shown], "points above the best other", _X_LABEL)
    for axes, column in zip(drawn, curves.shown, strict=True):
        axes.axhline(0, color=INK, linewidth=0.8)
        _draw_bands(axes, curves, partial(difference, column=column))
    legend_of_methods(figure, curves.curves)
    return figure


def _draw_bands(axes: Axes, curves: MissingCurves, read: Callable[[str, float], Score]) -> None:
    colours = method_colours(curves.curves)
    for number, method in enumerate(curves.curves):
        scores = [read(method, rate) for rate in curves.rates]
        mean = curves.metric.scale * np.array([score.mean for score in scores])
        std = curves.metric.scale * np.array([score.std or 0.0 for score in scores])
        axes.plot(
            curves.rates,
            mean,
            color=colours[method],
            linestyle=line_style(number),
            linewidth=1.7,
            marker="o",
            markersize=3.5,
        )
        axes.fill_between(curves.rates, mean - std, mean + std, color=colours[method], alpha=0.15, lw=0)
    axes.set_xticks(curves.rates, [f"{rate:g}" for rate in curves.rates])
