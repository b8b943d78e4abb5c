"""Maps of clients by clients, or by rounds, with their groups as colours beside the axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mmfl_fast.experiments.plots.curves import History
from mmfl_fast.experiments.plots.style import (
    INK,
    TOL_MUTED,
    bare,
    colours_from,
    group_colours,
    legend,
    legend_of_groups,
    new_axes,
    new_figure,
    short,
    unique,
)

Matrix = NDArray[np.float64]

_MAX_NAMES = 64


def similarity_map(
    affinity: Matrix, names: Sequence[str], groups: Sequence[str], clusters: Sequence[int] | None = None
) -> Figure | None:
    """Angular similarity of the clients' updates, clients sorted by cluster and then by group.

    Args:
        affinity: ``[K, K]`` in [0, 1]; NaN rows and columns for clients that did not take part are left out.
        names: ``[K]`` client names.
        groups: ``[K]`` what the colour strip shows, such as data set and modality.
        clusters: ``[K]``, -1 for a client in none; or None if the algorithm forms none.

    Returns:
        The figure; None if no client took part.

    Raises:
        ValueError: the matrix is not square or the lengths differ.
    """
    _refuse_other_lengths(affinity, names, groups, clusters)
    off_diagonal = affinity[~np.eye(len(affinity), dtype=bool)]
    distance = np.abs(off_diagonal[np.isfinite(off_diagonal)] - 0.5)
    # Unrelated updates have 0.5; the diagonal, always 1, may saturate so that the rest keeps its contrast.
    reach = min(0.5, max(0.02, float(distance.max()))) if len(distance) else 0.5
    norm = Normalize(0.5 - reach, 0.5 + reach)
    meaning = "angular similarity (0.5: unrelated)"
    return _client_map(affinity, names, groups, clusters, "RdBu_r", norm, meaning, saturated=reach < 0.5)


def consensus_map(
    consensus: Matrix, names: Sequence[str], groups: Sequence[str], clusters: Sequence[int] | None = None
) -> Figure | None:
    """Weights by which each client (row) mixes the operators of all; arguments as for `similarity_map`."""
    _refuse_other_lengths(consensus, names, groups, clusters)
    finite = consensus[np.isfinite(consensus)]
    norm = Normalize(0.0, max(float(finite.max(initial=0.0)), 1e-12))
    return _client_map(consensus, names, groups, clusters, "Blues", norm, "weight in the row's mix")


def clusters_by_round(history: History, names: Sequence[str], groups: Sequence[str]) -> Figure | None:
    """Cluster of every client (row, sorted by group) after every round (column).

    Args:
        history: lines of ``metrics.jsonl``; those without ``clusters`` are passed over. -1 stands for a
            client that never took part.
        names: ``[K]`` client names.
        groups: ``[K]`` what the colour strip shows.

    Returns:
        The figure; None if no line has clusters.

    Raises:
        ValueError: a line has another number of clients.
    """
    lines = [line for line in history if line.get("clusters") is not None]
    if not lines:
        return None
    for line in lines:
        if len(line["clusters"]) != len(names):
            raise ValueError(
                f"round {line['round']}: expected a cluster for each of {len(names)} clients; "
                f"got {len(line['clusters'])}"
            )
    order = _order(groups, [groups])
    image = np.array([line["clusters"] for line in lines]).T[order]
    count, rounds = image.shape
    highest = max(0, int(image.max()))
    colours = ["#eceff2", *colours_from(TOL_MUTED, highest + 1)]
    labels = [f"cluster {c}" for c in range(highest + 1)]
    if (image < 0).any():
        labels = ["not yet drawn", *labels]
    handles = [Patch(color=c) for c in colours[-len(labels) :]]

    figure = new_figure(8.4, side_of(count, 0.13))
    axes = new_axes(figure)
    norm = BoundaryNorm(np.arange(-1.5, highest + 1), highest + 2)
    edges = (np.arange(rounds + 1), np.arange(count + 1))
    axes.pcolormesh(*edges, image, cmap=ListedColormap(colours), norm=norm)
    strip = _draw_strip(axes, [groups[i] for i in order], group_colours(groups), rounds, vertical=True)
    axes.set(xlim=(-strip, rounds), ylim=(count, 0), xlabel="round")
    shown = np.unique(np.linspace(0, rounds - 1, min(rounds, 10)).round().astype(int))
    axes.set_xticks(shown + 0.5, [str(lines[i]["round"]) for i in shown])
    bare(axes)
    name_clients(axes, [names[i] for i in order])
    legend_of_groups(figure, groups)
    legend(figure, labels, handles, beside=True)
    return figure


def _client_map(
    matrix: Matrix,
    names: Sequence[str],
    groups: Sequence[str],
    clusters: Sequence[int] | None,
    colour_map: str,
    norm: Normalize,
    meaning: str,
    saturated: bool = False,
) -> Figure | None:
    keys = [groups] if clusters is None else [clusters, groups]
    order = [i for i in _order(groups, keys) if not np.isnan(matrix[i, i])]
    if not order:
        return None
    count = len(order)
    shown = np.ma.masked_invalid(matrix[np.ix_(order, order)])

    side = side_of(count, 0.13)
    widest = max(len(short(names[i])) for i in order)
    figure = new_figure(side + 1.9 + 0.06 * widest, side + 0.7)
    axes = new_axes(figure)
    edges = np.arange(count + 1)
    image = axes.pcolormesh(
        edges, edges, shown, cmap=colormaps[colour_map].with_extremes(bad="#b8bfc6"), norm=norm
    )
    colours = group_colours(groups)
    members = [groups[i] for i in order]
    strip = _draw_strip(axes, members, colours, count, vertical=True)
    _draw_strip(axes, members, colours, count, vertical=False)
    axes.set(xlim=(-strip, count), ylim=(count, -strip), aspect="equal", xticks=[])
    bare(axes)
    name_clients(axes, [names[i] for i in order])
    if clusters is not None and max(clusters) >= 0:
        _mark_clusters(axes, [clusters[i] for i in order])
    bar = figure.colorbar(
        image, ax=axes, shrink=0.7, aspect=28, pad=0.02, extend="max" if saturated else "neither"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.set_label(meaning, fontsize=9, color=INK)
    if count < len(matrix):
        axes.set_xlabel(f"{count} of {len(matrix)} clients took part in this round")
    legend_of_groups(figure, groups)
    return figure


def _draw_strip(
    axes: Axes, members: Sequence[str], colours: Mapping[str, str], length: float, *, vertical: bool
) -> float:
    """Draw the groups beside an image whose long side is ``length``; return how far the strip reaches out."""
    thickness, gap = 0.03 * length, 0.01 * length
    across = [-thickness - gap, -gap]
    along = np.arange(len(members) + 1)
    kinds = list(colours)
    codes = np.array([[kinds.index(m) for m in members]])
    colour_map = ListedColormap(list(colours.values()))
    norm = BoundaryNorm(np.arange(len(kinds) + 1) - 0.5, len(kinds))
    if vertical:
        axes.pcolormesh(across, along, codes.T, cmap=colour_map, norm=norm)
    else:
        axes.pcolormesh(along, across, codes, cmap=colour_map, norm=norm)
    return thickness + gap


def _mark_clusters(axes: Axes, clusters: Sequence[int]) -> None:
    count = len(clusters)
    runs = [(cluster, len(list(members))) for cluster, members in itertools.groupby(clusters)]
    ends = np.cumsum([size for _, size in runs])
    for end in ends[:-1]:
        axes.plot([0, count], [end, end], color="black", linewidth=1.2)
        axes.plot([end, end], [0, count], color="black", linewidth=1.2)
    centres = ends - np.array([size for _, size in runs]) / 2
    for (cluster, _), y in zip(runs, _apart(centres, 0.032 * count, count), strict=True):
        label = f"cluster {cluster}" if cluster >= 0 else "no cluster"
        axes.text(count * 1.015, y, label, fontsize=7.5, color=INK, va="center")


def _apart(positions: Matrix, gap: float, length: float) -> Matrix:
    """Move sorted positions down, then back up from ``length``, until neighbours are ``gap`` apart."""
    moved: Matrix = positions.copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved[-1] = min(moved[-1], max(length, positions[-1]))
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - gap)
    return moved


def name_clients(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows; every n-th where all labels would overlap."""
    step = math.ceil(len(names) / _MAX_NAMES)
    shown = range(0, len(names), step)
    axes.set_yticks([i + 0.5 for i in shown], [short(names[i]) for i in shown], fontsize=6.5)


def _order(groups: Sequence[str], keys: Sequence[Sequence[Any]]) -> list[int]:
    """Client numbers sorted by the keys; groups count by first appearance."""
    rank = {name: i for i, name in enumerate(unique(groups))}
    return sorted(range(len(groups)), key=lambda i: [rank[k[i]] if k is groups else k[i] for k in keys])


def side_of(count: int, per_client: float) -> float:
    """Side in inches that ``count`` clients take."""
    return float(np.clip(per_client * count + 2.2, 3.2, 9.5))


def _refuse_other_lengths(
    matrix: Matrix, names: Sequence[str], groups: Sequence[str], clusters: Sequence[int] | None
) -> None:
    count = len(names)
    if matrix.shape != (count, count):
        raise ValueError(f"matrix: expected [{count}, {count}] for {count} clients; got {list(matrix.shape)}")
    for what, values in (("groups", groups), ("clusters", clusters)):
        if values is not None and len(values) != count:
            raise ValueError(f"{what}: expected one per client ({count}); got {len(values)}")
