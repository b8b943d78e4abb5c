"""One self-contained ``report.html`` for a run or a comparison, and its pictures as PNG files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from matplotlib.figure import Figure

from mmfl_fast.experiments import plots
from mmfl_fast.experiments.recorded_run import COUNTED, RecordedRun, ReportError, read_run
from mmfl_fast.experiments.tables import ScoreTable, accuracy_table, macro_f1_table
from mmfl_fast.federation.run_directory import write_atomically

# Shown elsewhere in a report, or different in every cell.
_NOT_SETTINGS = ("seed", "command", "data_digest")


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


def write_run_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``plots/*.png`` into a run directory.

    Args:
        run_dir: of one run, finished or not.

    Returns:
        Path of the report.

    Raises:
        ReportError: a file of the run is missing or damaged; names it.
    """
    run = read_run(run_dir)
    histories = {run.config["algorithm"]: {run.config["seed"]: run.history}}
    cells = {run.config["algorithm"]: {run.config["seed"]: run}}
    pictures = [*_curve_pictures(histories), *_client_accuracy_picture(cells), *_state_pictures(run)]
    return _write(
        run_dir,
        "run.html.j2",
        pictures,
        run=run,
        title=f"{run.config['algorithm']} on {run.config.get('federation', 'its federation')}",
        data=_data_rows(run),
        scores=_score_rows(run),
        cost=_cost(run.history),
        settings=_flat({k: v for k, v in run.config.items() if k != "command"}),
        command=run.config.get("command"),
    )


def write_comparison_report(
    compare_dir: Path,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    command: str | None = None,
) -> Path:
    """Write ``report.html`` and ``plots/*.png`` into the folder of a comparison.

    Args:
        compare_dir: holds one run directory per cell, ``<method>/seed-<seed>``.
        methods: order of the methods; None takes those found, by name.
        seeds: which seeds; None takes those found.
        command: what the reader types to get the same.

    Returns:
        Path of the report.

    Raises:
        ReportError: there is no cell, one is missing, or a file of one is missing or damaged; names it.
    """
    cells = _read_cells(compare_dir, methods, seeds)
    runs = [run for by_seed in cells.values() for run in by_seed.values()]
    first_runs = {method: next(iter(by_seed.values())) for method, by_seed in cells.items()}
    first = runs[0]
    results = {m: {s: r.result for s, r in c.items() if r.result is not None} for m, c in cells.items()}
    tables = [accuracy_table(results), macro_f1_table(results)] if any(results.values()) else []
    pictures = list(_curve_pictures({m: {s: r.history for s, r in c.items()} for m, c in cells.items()}))
    pictures += _client_accuracy_picture(cells)
    for method, run in first_runs.items():
        pictures += _state_pictures(run, f"{method}-", f"{method}, seed {run.config['seed']}: ")
    common, differing = _compared_settings({m: r.config for m, r in first_runs.items()})
    return _write(
        compare_dir,
        "comparison.html.j2",
        pictures,
        title=f"{', '.join(cells)} on {first.config.get('federation', 'one federation')}",
        runs=runs,
        seeds=list(dict.fromkeys(r.config["seed"] for r in runs)),
        unfinished=[(m, s, r) for m, c in cells.items() for s, r in c.items() if r.result is None],
        data=_data_rows(first),
        data_varies=len({json.dumps(r.clients) for r in runs}) > 1,
        first=first,
        tables=[_shown(table) for table in tables],
        costs={m: _cost([line for r in c.values() for line in r.history]) for m, c in cells.items()},
        common=common,
        differing=differing,
        command=command,
    )


def _read_cells(
    folder: Path, methods: Sequence[str] | None, seeds: Sequence[int] | None
) -> dict[str, dict[int, RecordedRun]]:
    found: dict[str, list[int]] = {}
    for cell in folder.glob("*/seed-*"):
        number = cell.name.removeprefix("seed-")
        if number.isdecimal():
            found.setdefault(cell.parent.name, []).append(int(number))
    if not found:
        raise ReportError(f"{folder}: expected run directories <method>/seed-<seed>; found none")
    cells = {}
    for method in sorted(found) if methods is None else methods:
        wanted = sorted(found.get(method, [])) if seeds is None else seeds
        if not wanted:
            raise ReportError(f"{folder / method}: expected run directories seed-<seed>; found none")
        cells[method] = {seed: read_run(folder / method / f"seed-{seed}") for seed in wanted}
    runs = [run for by_seed in cells.values() for run in by_seed.values()]
    for run in runs:
        if run.datasets != runs[0].datasets:
            raise ReportError(f"{run.path / 'clients.json'}: other clients than those of {runs[0].path}")
    return cells


def _curve_pictures(histories: plots.Histories) -> Iterator[Picture]:
    several = max(len(seeds) for seeds in histories.values()) > 1
    band = " Lines are means over seeds, bands ± one sample standard deviation." if several else ""
    yield from _picture(
        "accuracy",
        "Accuracy by round",
        "Each client's own model on its own test rows, as the mean over clients." + band,
        plots.accuracy_by_round(histories),
    )
    yield from _picture(
        "train-loss",
        "Training loss by round",
        "Mean over the clients of the round." + band,
        plots.train_loss_by_round(histories),
    )


def _client_accuracy_picture(cells: Mapping[str, Mapping[int, RecordedRun]]) -> Iterator[Picture]:
    runs = [run for by_seed in cells.values() for run in by_seed.values()]
    scores = {
        method: {seed: run.result["per_client"] for seed, run in by_seed.items() if run.result is not None}
        for method, by_seed in cells.items()
    }
    each = "One dot per client" if len(runs) == len(cells) else "One dot per client and seed"
    yield from _picture(
        "clients",
        "Accuracy of every client",
        f"{each}; the bar is the mean of the dots. Clients without test rows have none.",
        plots.accuracy_by_client(scores, runs[0].datasets),
    )


def _state_pictures(run: RecordedRun, prefix: str = "", of: str = "") -> Iterator[Picture]:
    names, groups = run.names, run.groups
    clusters = run.state["clusters"].tolist() if "clusters" in run.state else None
    after = f"After round {run.state_round}."
    sorted_by = " Clients are sorted by cluster; lines are cluster boundaries." if clusters else ""
    try:
        if "affinity" in run.state:
            yield from _picture(
                f"{prefix}similarity",
                f"{of}Similarity of the clients' updates",
                f"{after}{sorted_by} The strip shows what the server does not know: data set "
                "and modality. The diagonal is 1.",
                plots.similarity_map(run.state["affinity"], names, groups, clusters),
            )
        if "consensus" in run.state:
            yield from _picture(
                f"{prefix}consensus",
                f"{of}Consensus matrix",
                f"{after}{sorted_by} A row holds the weights of that client's mix.",
                plots.consensus_map(run.state["consensus"], names, groups, clusters),
            )
    except ValueError as error:
        raise ReportError(f"{run.path / 'checkpoints'} does not fit clients.json: {error}") from error
    try:
        yield from _picture(
            f"{prefix}clusters",
            f"{of}Clusters by round",
            "Numbers follow the order of the clients within a round; the same number in two rounds need not "
            "be the same cluster.",
            plots.clusters_by_round(run.history, names, groups),
        )
    except ValueError as error:
        raise ReportError(f"{run.path / 'metrics.jsonl'}: {error}") from error


def _picture(name: str, title: str, caption: str, figure: Figure | None) -> Iterator[Picture]:
    if figure is not None:
        yield Picture(name, title, caption, plots.png(figure))


def _data_rows(run: RecordedRun) -> list[dict[str, Any]]:
    """Clients and rows per data set and set of modalities, then their sum."""
    members: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for client in run.clients:
        members.setdefault((client["dataset"], " + ".join(client["modalities"]) or "none"), []).append(client)
    rows = [_data_row(dataset, modality, clients) for (dataset, modality), clients in members.items()]
    return [*rows, _data_row("all", "", run.clients)] if len(rows) > 1 else rows


def _data_row(dataset: str, modality: str, clients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    train = [c["train"] for c in clients]
    return {
        "dataset": dataset,
        "modality": modality,
        "clients": len(clients),
        "train": sum(train),
        "test": sum(c["test"] for c in clients),
        "least": min(train, default=0),
        "most": max(train, default=0),
    }


def _score_rows(run: RecordedRun) -> list[tuple[str, float, float]]:
    """Return data set, accuracy and macro F1 as fractions; the overall scores last."""
    if run.scores is None:
        return []
    rows = [(name, s["accuracy"], s["macro_f1"]) for name, s in run.scores["per_dataset"].items()]
    return [*rows, ("overall", run.scores["accuracy"], run.scores["macro_f1"])]


def _cost(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return what was spent, as mean per round and sum."""
    if not history:
        return {}
    spent = {
        "client_seconds": [line["seconds"]["clients"] for line in history],
        "server_seconds": [line["seconds"]["server"] for line in history],
        **{name: [line[name] for line in history] for name in COUNTED},
    }
    return {name: (sum(values) / len(history), sum(values)) for name, values in spent.items()}


def _shown(table: ScoreTable) -> dict[str, Any]:
    rows = [
        (method, [(str(score), table.is_best(method, i)) for i, score in enumerate(scores)])
        for method, scores in table.rows.items()
    ]
    return {"title": table.title, "columns": table.columns, "rows": rows}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"a": {"b": 1}}`` into ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _compared_settings(
    configs: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split into settings on which all methods agree, and the others as setting -> method -> value."""
    flat = {
        method: _flat({k: v for k, v in config.items() if k not in _NOT_SETTINGS})
        for method, config in configs.items()
    }
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    common, differing = {}, {}
    for key in keys:
        values = {method: settings[key] for method, settings in flat.items() if key in settings}
        first = next(iter(values.values()))
        if len(values) == len(flat) and all(value == first for value in values.values()):
            common[key] = first
        elif key != "algorithm":
            differing[key] = values
    return common, differing


def _write(folder: Path, template: str, pictures: Sequence[Picture], **content: Any) -> Path:
    plot_folder = folder / "plots"
    plot_folder.mkdir(exist_ok=True)
    for picture in pictures:
        write_atomically(plot_folder / f"{picture.name}.png", picture.png)
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
