"""Figures of runs, drawn with matplotlib's object API: no pyplot, no global state, no display."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Lines of metrics.jsonl, and those of method -> seed.
History = Sequence[Mapping[str, Any]]
Histories = Mapping[str, Mapping[int, History]]
Matrix = NDArray[np.float64]

_DPI = 150
_INK = "#24292f"
_FAINT = "#d0d7de"
# Colour-blind-safe sets: Okabe and Ito for methods and client groups, Tol's "muted" for clusters.
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_TOL_MUTED = (
    "#332288",
    "#DDCC77",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
)
_LINE_STYLES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_MAX_NAMES = 64
_MAX_MARKED_ROUNDS = 15
_MAX_LABEL = 28


def png(figure: Figure) -> bytes:
    """Render at 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
    return buffer.getvalue()


def accuracy_by_round(histories: Histories) -> Figure | None:
    """Accuracy in percent by round: one panel per data set and one for all clients.

    Lines are means over seeds, bands the sample standard deviation. A method is drawn for the rounds that
    all its seeds have.

    Args:
        histories: method -> seed -> lines of ``metrics.jsonl``; rounds without an evaluation are passed over.

    Returns:
        The figure; None if no round was evaluated.
    """
    evaluated = {
        method: {seed: [line for line in history if "accuracy" in line] for seed, history in seeds.items()}
        for method, seeds in histories.items()
    }
    names = _unique(
        name
        for seeds in evaluated.values()
        for history in seeds.values()
        for line in history
        for name in line["per_dataset"]
    )
    if not names:
        return None

    def accuracy_on(name: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda line: 100 * line["per_dataset"].get(name, {"accuracy": math.nan})["accuracy"]

    panels = [
        *((name, accuracy_on(name)) for name in names),
        ("all clients", lambda line: 100 * line["accuracy"]),
    ]
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    rows = math.ceil(len(panels) / columns)
    figure = _figure(max(5.0, 3.4 * columns), 2.7 * rows + 0.6)
    for number, (name, read) in enumerate(panels):
        axes = _axes(figure, rows, columns, number + 1)
        _draw_curves(axes, evaluated, read)
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -2), min(top, 102))
        axes.set_title(_short(name), fontsize=10, color=_INK)
        if number % columns == 0:
            axes.set_ylabel("accuracy in %")
        if number >= len(panels) - columns:
            axes.set_xlabel("round")
    _legend_of_methods(figure, histories)
    return figure


def train_loss_by_round(histories: Histories) -> Figure | None:
    """Mean training loss of the round's clients, by round; lines and bands as for accuracy.

    Returns:
        The figure; None if no round has ended.
    """
    if not any(history for seeds in histories.values() for history in seeds.values()):
        return None
    figure = _figure(6.4, 3.8)
    axes = _axes(figure)
    _draw_curves(axes, histories, lambda line: line["train_loss"])
    axes.set_xlabel("round")
    axes.set_ylabel("training loss")
    _legend_of_methods(figure, histories)
    return figure


def similarity_map(
    affinity: Matrix, names: Sequence[str], groups: Sequence[str], clusters: Sequence[int] | None = None
) -> Figure | None:
    """Angular similarity of the clients' updates, clients sorted by cluster and then by group.

    Args:
        affinity: ``[K, K]`` in [0, 1]; NaN rows and columns for clients that did not take part are left out.
        names: ``[K]`` client names.
        groups: ``[K]`` what the colour strip shows, such as data set and modality.
        clusters: ``[K]``, or None if the algorithm forms none.

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
    colours = ["#eceff2", *_colours(_TOL_MUTED, highest + 1)]
    labels = [f"cluster {c}" for c in range(highest + 1)]
    if (image < 0).any():
        labels = ["not yet drawn", *labels]
    handles = [Patch(color=c) for c in colours[-len(labels) :]]

    figure = _figure(8.4, _side(count, 0.13))
    axes = _axes(figure)
    norm = BoundaryNorm(np.arange(-1.5, highest + 1), highest + 2)
    edges = (np.arange(rounds + 1), np.arange(count + 1))
    axes.pcolormesh(*edges, image, cmap=ListedColormap(colours), norm=norm)
    strip = _draw_strip(axes, [groups[i] for i in order], _group_colours(groups), rounds, vertical=True)
    axes.set(xlim=(-strip, rounds), ylim=(count, 0), xlabel="round")
    shown = np.unique(np.linspace(0, rounds - 1, min(rounds, 10)).round().astype(int))
    axes.set_xticks(shown + 0.5, [str(lines[i]["round"]) for i in shown])
    _bare(axes)
    _name_clients(axes, [names[i] for i in order])
    _legend_of_groups(figure, groups)
    _legend(figure, labels, handles, beside=True)
    return figure


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
    columns = _unique(datasets)
    methods = list(scores)
    figure = _figure(float(np.clip(1.4 + len(columns) * (0.45 * len(methods) + 0.4), 5, 13)), 4.0)
    axes = _axes(figure)
    width = 0.84 / len(methods)
    colours = _method_colours(methods)
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
            axes.hlines(values.mean(), centre - reach, centre + reach, color=_INK, linewidth=1.6)
    for boundary in range(1, len(columns)):
        axes.axvline(boundary - 0.5, color=_FAINT, linewidth=0.8)
    labels = [_short(name) for name in columns]
    crowded = max(len(label) for label in labels) * len(labels) * 0.085 > figure.get_figwidth()
    axes.set_xticks(range(len(columns)), labels)
    if crowded:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("accuracy of a client in %")
    _legend_of_methods(figure, scores)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, rows: int = 1, columns: int = 1, number: int = 1) -> Axes:
    axes = figure.add_subplot(rows, columns, number)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=8, color=_FAINT)
    axes.xaxis.label.set(color=_INK, fontsize=9)
    axes.yaxis.label.set(color=_INK, fontsize=9)
    axes.grid(color=_FAINT, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return axes


def _bare(axes: Axes) -> None:
    """Make room for an image: no spines, grid or tick marks."""
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)


def _draw_curves(axes: Axes, histories: Histories, read: Callable[[Mapping[str, Any]], float]) -> None:
    colours = _method_colours(histories)
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
            linestyle=_line_style(number),
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

    side = _side(count, 0.13)
    widest = max(len(_short(names[i])) for i in order)
    figure = _figure(side + 1.9 + 0.06 * widest, side + 0.7)
    axes = _axes(figure)
    edges = np.arange(count + 1)
    image = axes.pcolormesh(
        edges, edges, shown, cmap=colormaps[colour_map].with_extremes(bad="#b8bfc6"), norm=norm
    )
    colours = _group_colours(groups)
    members = [groups[i] for i in order]
    strip = _draw_strip(axes, members, colours, count, vertical=True)
    _draw_strip(axes, members, colours, count, vertical=False)
    axes.set(xlim=(-strip, count), ylim=(count, -strip), aspect="equal", xticks=[])
    _bare(axes)
    _name_clients(axes, [names[i] for i in order])
    if clusters is not None:
        _mark_clusters(axes, [clusters[i] for i in order])
    bar = figure.colorbar(
        image, ax=axes, shrink=0.7, aspect=28, pad=0.02, extend="max" if saturated else "neither"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_INK)
    bar.set_label(meaning, fontsize=9, color=_INK)
    if count < len(matrix):
        axes.set_xlabel(f"{count} of {len(matrix)} clients took part in this round")
    _legend_of_groups(figure, groups)
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
        axes.text(count * 1.015, y, f"cluster {cluster}", fontsize=7.5, color=_INK, va="center")


def _apart(positions: Matrix, gap: float, length: float) -> Matrix:
    """Move sorted positions down, then back up from ``length``, until neighbours are ``gap`` apart."""
    moved: Matrix = positions.copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved[-1] = min(moved[-1], max(length, positions[-1]))
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - gap)
    return moved


def _name_clients(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows; every n-th where all labels would overlap."""
    step = math.ceil(len(names) / _MAX_NAMES)
    shown = range(0, len(names), step)
    axes.set_yticks([i + 0.5 for i in shown], [_short(names[i]) for i in shown], fontsize=6.5)


def _legend_of_methods(figure: Figure, methods: Collection[str]) -> None:
    if len(methods) < 2:
        return
    colours = _method_colours(methods)
    handles = [
        Line2D([], [], color=colours[m], linestyle=_line_style(i), linewidth=2) for i, m in enumerate(methods)
    ]
    _legend(figure, [_short(m) for m in methods], handles)


def _legend_of_groups(figure: Figure, groups: Sequence[str]) -> None:
    colours = _group_colours(groups)
    _legend(figure, [_short(name) for name in colours], [Patch(color=colour) for colour in colours.values()])


def _legend(
    figure: Figure, labels: Sequence[str], handles: Sequence[Artist], *, beside: bool = False
) -> None:
    """Below the axes in as many columns as fit, or beside them in one."""
    entry = 0.55 + 0.07 * max(len(label) for label in labels)
    columns = 1 if beside else max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    figure.legend(
        handles,
        labels,
        loc="outside right upper" if beside else "outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
        handlelength=1.6,
    )


def _method_colours(methods: Collection[str]) -> dict[str, str]:
    return dict(zip(methods, _colours(_OKABE_ITO, len(methods)), strict=True))


def _group_colours(groups: Sequence[str]) -> dict[str, str]:
    kinds = _unique(groups)
    return dict(zip(kinds, _colours(_OKABE_ITO, len(kinds)), strict=True))


def _colours(base: Sequence[str], count: int) -> list[str]:
    """Return the base colours, then paler and paler ones."""
    colours = []
    for i in range(count):
        paleness = 1 - 0.55 ** (i // len(base))
        red, green, blue = (c + (1 - c) * paleness for c in to_rgb(base[i % len(base)]))
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours


def _line_style(number: int) -> Literal["-", "--", ":"]:
    """Solid while the colours last."""
    return _LINE_STYLES[min(number // len(_OKABE_ITO), len(_LINE_STYLES) - 1)]


def _order(groups: Sequence[str], keys: Sequence[Sequence[Any]]) -> list[int]:
    """Client numbers sorted by the keys; groups count by first appearance."""
    rank = {name: i for i, name in enumerate(_unique(groups))}
    return sorted(range(len(groups)), key=lambda i: [rank[k[i]] if k is groups else k[i] for k in keys])


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _side(count: int, per_client: float) -> float:
    return float(np.clip(per_client * count + 2.2, 3.2, 9.5))


def _short(text: str) -> str:
    return _literal(text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…")


def _literal(text: str) -> str:
    """Keep matplotlib from reading ``$`` as mathematics and a leading ``_`` as "leave out of the legend"."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _refuse_other_lengths(
    matrix: Matrix, names: Sequence[str], groups: Sequence[str], clusters: Sequence[int] | None
) -> None:
    count = len(names)
    if matrix.shape != (count, count):
        raise ValueError(f"matrix: expected [{count}, {count}] for {count} clients; got {list(matrix.shape)}")
    for what, values in (("groups", groups), ("clusters", clusters)):
        if values is not None and len(values) != count:
            raise ValueError(f"{what}: expected one per client ({count}); got {len(values)}")
