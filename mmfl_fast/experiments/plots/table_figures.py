"""Figures of score tables: curves over what was varied, and bars."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmfl_fast.experiments.plots.style import (
    INK,
    keep_percent,
    legend_of_methods,
    line_style,
    method_colours,
    new_axes,
    new_figure,
    panels,
    short,
)
from mmfl_fast.experiments.scores import Metric, Score, ScoreTable

# Curve -> value of the axis -> one score per column.
Sweep = Mapping[str, Mapping[float, Sequence[Score]]]


def score_over(key: str, sweep: Sweep, columns: Sequence[str], metric: Metric) -> Figure:
    """Final scores over the values of one key; error bars are the std over seeds.

    Args:
        key: what is varied, the label of the x axis.
        sweep: curves; values without a score are passed over.
        columns: names of the scores, one panel each.
        metric: the score, in percent.
    """
    figure, drawn = panels(columns, metric.title, key)
    colours = method_colours(sweep)
    values = sorted({value for points in sweep.values() for value in points})
    gap = min((b - a for a, b in itertools.pairwise(values)), default=0.0)
    for column, axes in enumerate(drawn):
        for number, (curve, points) in enumerate(sweep.items()):
            scores = {v: s[column] for v, s in sorted(points.items()) if not math.isnan(s[column].mean)}
            # Beside each other, or the bar of one curve hides that of another.
            shift = 0.2 * gap * ((number + 0.5) / len(sweep) - 0.5)
            axes.errorbar(
                [value + shift for value in scores],
                [metric.scale * s.mean for s in scores.values()],
                [metric.scale * (s.std or 0.0) for s in scores.values()],
                color=colours[curve],
                linestyle=line_style(number),
                linewidth=1.7,
                marker="o",
                markersize=4,
                capsize=2,
                elinewidth=0.9,
            )
        axes.set_xticks(values, [f"{value:g}" for value in values])
        keep_percent(axes)
    legend_of_methods(figure, sweep)
    return figure


def client_pass_bars(table: ScoreTable) -> Figure:
    """Time of a client's round, one group of bars per data set; error bars are the std over seeds."""
    methods = list(table.rows)
    figure = new_figure(float(np.clip(1.6 + len(table.columns) * (0.22 * len(methods) + 0.5), 5, 13)), 4.0)
    axes = new_axes(figure)
    width = 0.84 / len(methods)
    colours = method_colours(methods)
    for number, (method, scores) in enumerate(table.rows.items()):
        centres = np.arange(len(scores)) + (number - (len(methods) - 1) / 2) * width
        _draw_bars(axes, centres.tolist(), scores, 0.92 * width, colours[method])
    axes.set_xticks(range(len(table.columns)), [short(name) for name in table.columns])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("ms per client and round")
    legend_of_methods(figure, methods)
    return figure


def _draw_bars(
    axes: Axes, centres: Sequence[float], scores: Sequence[Score], width: float, colour: str
) -> None:
    scale = scores[0].metric.scale
    axes.bar(
        centres,
        [scale * score.mean for score in scores],
        width,
        yerr=[scale * (score.std or 0.0) for score in scores],
        color=colour,
        error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2},
    )
