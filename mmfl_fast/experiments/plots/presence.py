"""Which clients have which modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mmfl_fast.experiments.plots.client_maps import name_clients, side_of
from mmfl_fast.experiments.plots.style import INK, bare, new_axes, new_figure, short, unique

# Modality -> share of a client's rows that have it.
Presence = Mapping[str, float]


def presence_map(parts: Mapping[str, Sequence[Presence]], names: Sequence[str]) -> Figure | None:
    """Share of each client's rows (row) that have each modality (column), one panel per part of the rows.

    Args:
        parts: title such as ``"training rows"`` -> one mapping per client; what it does not name is no
            modality of the client's data set, or the client has no such rows.
        names: ``[K]`` client names.

    Returns:
        The figure, of the parts in which anything is missing; None if nothing is.

    Raises:
        ValueError: a part has another number of clients.
    """
    for part, clients in parts.items():
        if len(clients) != len(names):
            raise ValueError(f"{part}: expected one mapping per client ({len(names)}); got {len(clients)}")
    shown = {
        part: clients for part, clients in parts.items() if any(s < 1 for c in clients for s in c.values())
    }
    if not shown:
        return None
    modalities = unique(m for clients in parts.values() for client in clients for m in client)
    width = 0.55 * len(modalities) + 0.4
    widest = max(len(short(name)) for name in names)
    figure = new_figure(max(4.0, len(shown) * width + 1.6 + 0.06 * widest), side_of(len(names), 0.13))
    edges = (np.arange(len(modalities) + 1), np.arange(len(names) + 1))
    drawn = []
    for number, (part, clients) in enumerate(shown.items(), start=1):
        axes = new_axes(figure, 1, len(shown), number)
        shares = np.array([[client.get(m, np.nan) for m in modalities] for client in clients])
        image = axes.pcolormesh(
            *edges,
            np.ma.masked_invalid(shares),
            cmap=colormaps["Blues"].with_extremes(bad="#b8bfc6"),
            norm=Normalize(0.0, 1.0),
            edgecolors="white",
            linewidth=0.4,
        )
        axes.set_title(part, fontsize=10, color=INK)
        axes.set(xlim=(0, len(modalities)), ylim=(len(names), 0))
        axes.set_xticks(np.arange(len(modalities)) + 0.5, [short(m) for m in modalities], rotation=30)
        bare(axes)
        if number == 1:
            name_clients(axes, names)
        else:
            axes.set_yticks([])
        drawn.append(axes)
    bar = figure.colorbar(image, ax=drawn, shrink=0.7, aspect=28, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.set_label("share of the client's rows that have it", fontsize=9, color=INK)
    return figure
