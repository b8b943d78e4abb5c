"""Curves over rounds: means over seeds with bands of one standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmfl_fast.experiments.plots.style import (
    keep_percent,
    legend_of_methods,
    line_style,
    method_colours,
    new_axes,
    new_figure,
    panels,
    unique,
)
from mmfl_fast.experiments.scores import Metric

# Lines of metrics.jsonl, and those of method -> seed.
History = Sequence[Mapping[str, Any]]
Histories = Mapping[str, Mapping[int, History]]

_MAX_MARKED_ROUNDS = 15


def score_by_round(histories: Histories, metric: Metric) -> Figure | None:
    """A score by round: one panel per data set and one overall.

    Lines are means over seeds, bands the sample standard deviation. A method is drawn for the rounds that
    all its seeds have.

    Args:
        histories: method -> seed -> lines of ``metrics.jsonl``; rounds without the score are passed over.
        metric: the score, in percent.

    Returns:
        The figure; None if no round has the score.
    """
    evaluated = {
        method: {seed: [line for line in history if metric.name in line] for seed, history in seeds.items()}
        for method, seeds in histories.items()
    }
    names = unique(
        name
        for seeds in evaluated.values()
        for history in seeds.values()
        for line in history
        for name in line["per_dataset"]
    )
    if not names:
        return None

    def score_on(name: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda line: metric.scale * line["per_dataset"].get(name, {}).get(metric.name, math.nan)

    readers = [
        *((name, score_on(name)) for name in names),
        (metric.overall, lambda line: metric.scale * line[metric.name]),
    ]
    figure, drawn = panels([name for name, _ in readers], metric.title, "round")
    for axes, (_, read) in zip(drawn, readers, strict=True):
        _draw_curves(axes, evaluated, read)
        keep_percent(axes)
    legend_of_methods(figure, histories)
    return figure


def measures_by_round(histories: Histories, names: Sequence[str]) -> Figure | None:
    """What algorithms measure of themselves, by round: one panel per measure, lines and bands as for scores.

    Args:
        histories: method -> seed -> lines of ``metrics.jsonl``.
        names: keys of the measures; lines without one, or with None, are passed over.

    Returns:
        The figure; None if there is no measure.
    """
    if not names:
        return None
    told = {
        name: {
            method: {s: [line for line in h if line.get(name) is not None] for s, h in seeds.items()}
            for method, seeds in histories.items()
        }
        for name in names
    }
    figure, drawn = panels([name.replace("_", " ") for name in names], "", "round")
    for axes, (name, own) in zip(drawn, told.items(), strict=True):
        _draw_curves(axes, own, itemgetter(name))
    having = [m for m in histories if any(any(own[m].values()) for own in told.values())]
    legend_of_methods(figure, histories, having)
    return figure


def train_loss_by_round(histories: Histories) -> Figure | None:
    """Mean training loss of the round's clients, by round; lines and bands as for accuracy.

    Returns:
        The figure; None if no round has ended.
    """
    if not any(history for seeds in histories.values() for history in seeds.values()):
        return None
    figure = new_figure(6.4, 3.8)
    axes = new_axes(figure)
    _draw_curves(axes, histories, lambda line: line["train_loss"])
    axes.set_xlabel("round")
    axes.set_ylabel("training loss")
    legend_of_methods(figure, histories)
    return figure


def agreement_by_round(histories: Histories) -> Figure | None:
    """Adjusted Rand index of clusters and true modalities by round: 1 if they agree, about 0 by chance.

    Returns:
        The figure, of the methods that tell the index; None if none does.
    """
    told = {
        method: {
            s: [line for line in history if "adjusted_rand_index" in line] for s, history in seeds.items()
        }
        for method, seeds in histories.items()
    }
    drawn = [method for method, seeds in told.items() if any(seeds.values())]
    if not drawn:
        return None
    figure = new_figure(6.4, 3.8)
    axes = new_axes(figure)
    _draw_curves(axes, told, lambda line: line["adjusted_rand_index"])
    axes.set_xlabel("round")
    axes.set_ylabel("adjusted Rand index")
    bottom, _ = axes.get_ylim()
    axes.set_ylim(min(bottom, -0.05), 1.05)
    legend_of_methods(figure, told, drawn)
    return figure


def _draw_curves(axes: Axes, histories: Histories, read: Callable[[Mapping[str, Any]], float]) -> None:
    colours = method_colours(histories)
    drawn: set[int] = set()
    for number, (method, seeds) in enumerate(histories.items()):
        curves = [{line["round"]: read(line) for line in history} for history in seeds.values() if history]
        if not curves:
            continue
        rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[r] for r in rounds] for curve in curves], dtype=np.float64)
        drawn.update(rounds)
        mean = values.mean(axis=0)
        axes.plot(
            rounds,
            mean,
            color=colours[method],
            linewidth=1.7,
            linestyle=line_style(number),
            marker="o" if len(rounds) <= _MAX_MARKED_ROUNDS else "",
            markersize=3.5,
        )
        if len(values) > 1:
            std = values.std(axis=0, ddof=1)
            if len(rounds) > 1:
                axes.fill_between(rounds, mean - std, mean + std, color=colours[method], alpha=0.15, lw=0)
            else:
                axes.errorbar(rounds, mean, std, color=colours[method], capsize=3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(drawn) == 1:
        only = drawn.pop()
        axes.set_xlim(only - 1, only + 1)
        axes.set_xticks([only])
