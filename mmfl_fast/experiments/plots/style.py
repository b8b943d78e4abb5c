"""The look that all figures share: colours, axes, legends. Colour-blind-safe, no pyplot, no display."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

INK = "#24292f"
FAINT = "#d0d7de"
# Okabe and Ito for methods and client groups, grey in the place of a yellow that no line on white can have;
# Tol's "muted" for clusters.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
TOL_MUTED = (
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
_DPI = 150
_LINE_STYLES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_MAX_LABEL = 28
# Inches.
_LEGEND_LINE = 0.2
_MAX_LEGEND_LABEL = 60


def png(figure: Figure) -> bytes:
    """Render at 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels(names: Sequence[str], y_label: str, x_label: str) -> tuple[Figure, list[Axes]]:
    """One panel per name, at most three side by side."""
    columns = min(3, len(names)) if len(names) != 4 else 2
    rows = math.ceil(len(names) / columns)
    # One panel alone has room.
    width, height = (6.4, 3.6) if columns == 1 else (3.4, 2.7)
    figure = new_figure(width * columns, height * rows + 0.6)
    drawn = []
    for number, name in enumerate(names):
        axes = new_axes(figure, rows, columns, number + 1)
        axes.set_title(short(name), fontsize=10, color=INK)
        if number % columns == 0:
            axes.set_ylabel(y_label)
        if number >= len(names) - columns:
            axes.set_xlabel(x_label)
        drawn.append(axes)
    return figure, drawn


def keep_percent(axes: Axes) -> None:
    """Cut the range of the y axis to what a percentage can be."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, -2), min(top, 102))


def new_axes(figure: Figure, rows: int = 1, columns: int = 1, number: int = 1) -> Axes:
    """Axes of a grid, with a faint frame and lines."""
    axes = figure.add_subplot(rows, columns, number)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, color=FAINT)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.grid(color=FAINT, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return axes


def bare(axes: Axes) -> None:
    """Make room for an image: no spines, grid or tick marks."""
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)


def legend_of_methods(figure: Figure, methods: Collection[str], drawn: Collection[str] | None = None) -> None:
    """Below the axes, of the methods that are drawn, by default all; one method needs none."""
    if len(methods) < 2:
        return
    colours = method_colours(methods)
    shown = [(i, method) for i, method in enumerate(methods) if drawn is None or method in drawn]
    handles = [Line2D([], [], color=colours[m], linestyle=line_style(i), linewidth=2) for i, m in shown]
    legend(figure, [short(m, _MAX_LEGEND_LABEL) for _, m in shown], handles)


def legend_of_groups(figure: Figure, groups: Sequence[str]) -> None:
    """Below the axes."""
    colours = group_colours(groups)
    legend(figure, [short(name) for name in colours], [Patch(color=colour) for colour in colours.values()])


def legend(figure: Figure, labels: Sequence[str], handles: Sequence[Artist], *, beside: bool = False) -> None:
    """Below the axes in as many columns as fit, or beside them in one."""
    entry = 0.55 + 0.07 * max(len(label) for label in labels)
    columns = 1 if beside else max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    if not beside:
        # Its further lines are not to be taken from the axes.
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * (math.ceil(len(labels) / columns) - 1))
    figure.legend(
        handles,
        labels,
        loc="outside right upper" if beside else "outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=1.6,
    )


def method_colours(methods: Collection[str]) -> dict[str, str]:
    """Method -> colour."""
    return dict(zip(methods, colours_from(OKABE_ITO, len(methods)), strict=True))


def group_colours(groups: Sequence[str]) -> dict[str, str]:
    """Group -> colour, in the order of first appearance."""
    kinds = unique(groups)
    return dict(zip(kinds, colours_from(OKABE_ITO, len(kinds)), strict=True))


def colours_from(base: Sequence[str], count: int) -> list[str]:
    """Return the base colours, then paler and paler ones."""
    colours = []
    for i in range(count):
        paleness = 1 - 0.55 ** (i // len(base))
        red, green, blue = (c + (1 - c) * paleness for c in to_rgb(base[i % len(base)]))
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours


def line_style(number: int) -> Literal["-", "--", ":"]:
    """Solid while the colours last."""
    return _LINE_STYLES[min(number // len(OKABE_ITO), len(_LINE_STYLES) - 1)]


def short(text: str, limit: int = _MAX_LABEL) -> str:
    """A label that is not too long, taken literally."""
    return _literal(text if len(text) <= limit else text[: limit - 1] + "…")


def _literal(text: str) -> str:
    """Keep matplotlib from reading ``$`` as mathematics and a leading ``_`` as "leave out of the legend"."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def unique(values: Iterable[str]) -> list[str]:
    """Each once, in the order of first appearance."""
    return list(dict.fromkeys(values))
