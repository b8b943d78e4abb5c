"""Scores of single clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mmfl_fast.experiments.plots.style import (
    FAINT,
    INK,
    legend_of_methods,
    method_colours,
    new_axes,
    new_figure,
    short,
    unique,
)


def accuracy_by_client(
    scores: Mapping[str, Mapping[int, Sequence[float]]], datasets: Sequence[str]
) -> Figure | None:
    """One dot per client, seed and method over the client's data set; a bar marks the mean of the dots.

    Args:
        scores: method -> seed -> ``[K]`` accuracies as fractions, NaN for a client without test rows.
        datasets: ``[K]`` data set of each client.

    Returns:
        The figure; None without a client that has test rows.

    Raises:
        ValueError: a list of scores has another length than ``datasets``.
    """
    for method, seeds in scores.items():
        for seed, values in seeds.items():
            if len(values) != len(datasets):
                raise ValueError(
                    f"scores[{method!r}][{seed}]: expected {len(datasets)}, one per client; got {len(values)}"
                )
    stacked = {m: 100 * np.array(list(s.values()), dtype=np.float64) for m, s in scores.items() if s}
    if not any(np.isfinite(values).any() for values in stacked.values()):
        return None
    columns = unique(datasets)
    methods = list(scores)
    figure = new_figure(float(np.clip(1.4 + len(columns) * (0.45 * len(methods) + 0.4), 5, 13)), 4.0)
    axes = new_axes(figure)
    width = 0.84 / len(methods)
    colours = method_colours(methods)
    for x, dataset in enumerate(columns):
        members = [i for i, name in enumerate(datasets) if name == dataset]
        for number, method in enumerate(methods):
            if method not in stacked:
                continue
            values = stacked[method][:, members].T.ravel()
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            centre = x + (number - (len(methods) - 1) / 2) * width
            spread = np.linspace(-0.32, 0.32, len(values)) * width if len(values) > 1 else np.zeros(1)
            axes.scatter(centre + spread, values, s=14, color=colours[method], alpha=0.65, linewidths=0)
            reach = 0.42 * width
            axes.hlines(values.mean(), centre - reach, centre + reach, color=INK, linewidth=1.6)
    for boundary in range(1, len(columns)):
        axes.axvline(boundary - 0.5, color=FAINT, linewidth=0.8)
    labels = [short(name) for name in columns]
    crowded = max(len(label) for label in labels) * len(labels) * 0.085 > figure.get_figwidth()
    axes.set_xticks(range(len(columns)), labels)
    if crowded:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("accuracy of a client in %")
    legend_of_methods(figure, scores)
    return figure
