"""HTML pages from templates: one file, nothing from the network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from matplotlib.figure import Figure

from mmfl_fast.experiments import plots
from mmfl_fast.federation.run_directory import write_atomically


@dataclass(frozen=True)
class Picture:
    """A figure of a report; ``name`` is its file name without ``.png``."""

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The PNG inside a URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def width(self) -> int:
        """Width on the page in CSS pixels, at which the letters of all figures have one size."""
        # Bytes 16 to 19 of a PNG hold its width.
        return round(int.from_bytes(self.png[16:20], "big") / 1.5)


def picture(name: str, title: str, caption: str, figure: Figure | None) -> Iterator[Picture]:
    """Render a figure, if there is one."""
    if figure is not None:
        yield Picture(name, title, caption, plots.png(figure))


def write_page(folder: Path, template: str, pictures: Sequence[Picture], **content: Any) -> Path:
    """Write ``report.html`` and, beside it, ``plots/*.png``."""
    plot_folder = folder / "plots"
    plot_folder.mkdir(exist_ok=True)
    for each in pictures:
        write_atomically(plot_folder / f"{each.name}.png", each.png)
    report = folder / "report.html"
    write_atomically(report, _environment().get_template(template).render(pictures=pictures, **content))
    return report


@cache
def _environment() -> Environment:
    folder = resources.files("mmfl_fast.experiments") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, amount=_amount, data_size=_data_size, setting=_setting)
    return environment


def _percent(fraction: float) -> str:
    return "n/a" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def _amount(value: float) -> str:
    """Whole numbers with separators, others with three significant digits."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def _data_size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
