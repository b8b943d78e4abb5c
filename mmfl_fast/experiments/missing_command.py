"""``mmfl-fast data missing``: who is left with which modalities, before anything is trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmfl_fast import data
from mmfl_fast.data import Federation
from mmfl_fast.data.arguments import suggestion
from mmfl_fast.experiments import plots
from mmfl_fast.experiments.presets import Experiment, experiment_on, load_experiment, preset_names
from mmfl_fast.federation.run_directory import write_atomically


def show_missing(source: str, changes: list[str], out: Path) -> bool:
    """Print what the clients of an experiment are left with, and draw it.

    Args:
        source: a data set, a preset, or the path of a YAML file.
        changes: ``key=value`` as for ``--set``.
        out: PNG file; written only if something is missing.

    Returns:
        Whether anything is missing.

    Raises:
        ValueError: unknown source (with the nearest), or a value that does not fit.
        FileNotFoundError: a file is not there.
    """
    experiment = _experiment(source, changes)
    federation = experiment.federation(experiment.seed)
    console = Console()
    console.print(clients_table(federation), rows_table(federation))
    parts = {
        f"{title} rows": [data.presence(client, part) for client in federation.clients]
        for part, title in (("train", "training"), ("test", "test"))
    }
    figure = plots.presence_map(parts, [client.name for client in federation.clients])
    if figure is not None:
        write_atomically(out, plots.png(figure))
    return figure is not None


def clients_table(federation: Federation) -> Table:
    """Clients and training rows by the modalities that a client has in any of its training rows."""
    clients: Counter[tuple[str, str]] = Counter()
    rows: Counter[tuple[str, str]] = Counter()
    for client in federation.clients:
        kind = client.task.name, " + ".join(client.modalities) or "none"
        clients[kind] += 1
        rows[kind] += client.num_train
    table = Table("data set", "modalities of a client", box=None)
    for header in ("clients", "share", "training rows"):
        table.add_column(header, justify="right")
    sizes = {task.name: len(task.client_names) for task in federation.tasks}
    for (task_name, held), count in clients.items():
        share = f"{100 * count / sizes[task_name]:.1f} %"
        table.add_row(task_name, held, str(count), share, str(rows[task_name, held]))
    return table


def rows_table(federation: Federation) -> Table:
    """Share of the training and test rows that have each modality."""
    table = Table("data set", "modality", box=None)
    for header in ("training rows that have it", "test rows that have it"):
        table.add_column(header, justify="right")
    for task in federation.tasks:
        for column, modality in enumerate(task.modalities):
            shares = [task.present[rows, column].double().mean() for rows in (task.is_train, ~task.is_train)]
            table.add_row(task.name, modality, *(f"{100 * float(share):.1f} %" for share in shares))
    return table


def _experiment(source: str, changes: list[str]) -> Experiment:
    names = [entry.name for entry in data.available()]
    if source in names:
        return experiment_on(source, changes)
    if source.endswith((".yaml", ".yml")) or source in preset_names():
        return load_experiment(source, changes)
    known = [*names, *(name for name in preset_names() if name not in names)]
    raise ValueError(f"unknown data set or preset {source!r}{suggestion(source, known)}")
