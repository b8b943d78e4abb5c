"""The similarity of the clients round by round, as data for a moving heat map in the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from mmfl_fast.experiments.plots.style import OKABE_ITO, TOL_MUTED, colours_from, unique
from mmfl_fast.experiments.recorded_run import RecordedRun

# One byte per pair: 255 stands for a client that did not take part.
_LEVELS = 255
_ABSENT = 255
_NO_CLUSTER = "#eceff2"


@dataclass(frozen=True)
class Film:
    """A moving heat map; ``data`` is what the page's script draws."""

    name: str
    title: str
    data: dict[str, Any]

    @property
    def json(self) -> Markup:
        """The data inside a script element, which nothing in it can close."""
        return Markup(json.dumps(self.data, separators=(",", ":")).replace("<", "\\u003c"))


def similarity_film(run: RecordedRun, prefix: str = "", of: str = "") -> Film | None:
    """The similarities of a run, clients in one order for all rounds: by modality, then data set.

    Args:
        run: whose.
        prefix: of the name, to tell films of one page apart.
        of: begins the title.

    Returns:
        None if the run kept no similarity.

    Raises:
        ReportError: a file of a similarity is damaged; names it.
    """
    matrices = run.similarities()
    if not matrices:
        return None
    kinds, datasets = unique(run.modalities), unique(run.datasets)
    order = sorted(
        range(len(run.clients)),
        key=lambda i: (kinds.index(run.modalities[i]), datasets.index(run.datasets[i]), i),
    )
    lines = {line["round"]: line for line in run.history}
    shown = [lines[number] for number in matrices]
    clusters = [line.get("clusters") for line in shown]
    highest = max((max(c) for c in clusters if c is not None), default=-1)
    reach = _reach(list(matrices.values()))
    return Film(
        f"{prefix}film",
        f"{of}Similarity and clusters, round by round",
        {
            "rounds": list(matrices),
            "names": [run.names[i] for i in order],
            "kinds": kinds,
            "kindColours": colours_from(OKABE_ITO, len(kinds)),
            "kindOf": [kinds.index(run.modalities[i]) for i in order],
            "clusterColours": [*colours_from(TOL_MUTED, highest + 1), _NO_CLUSTER],
            "clusters": [None if c is None else [c[i] for i in order] for c in clusters],
            "agreement": [line.get("adjusted_rand_index") for line in shown],
            "low": 0.5 - reach,
            "high": 0.5 + reach,
            "palette": [to_hex(colormaps["RdBu_r"](level / (_LEVELS - 1))) for level in range(_LEVELS)],
            "frames": [_frame(matrix[np.ix_(order, order)], reach) for matrix in matrices.values()],
        },
    )


def _reach(matrices: Sequence[NDArray[Any]]) -> float:
    """How far from 0.5, unrelated, any two clients are in any round; the diagonal is always 1."""
    off_diagonal = np.stack(matrices)[:, ~np.eye(len(matrices[0]), dtype=bool)].astype(np.float64)
    distance = np.abs(off_diagonal[np.isfinite(off_diagonal)] - 0.5)
    return float(np.clip(distance.max(initial=0.0), 0.02, 0.5))


def _frame(matrix: NDArray[Any], reach: float) -> str:
    scaled = (matrix.astype(np.float64) - 0.5 + reach) / (2 * reach) * (_LEVELS - 1)
    levels = np.where(np.isnan(scaled), _ABSENT, np.clip(np.rint(scaled), 0, _LEVELS - 1))
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode("ascii")
