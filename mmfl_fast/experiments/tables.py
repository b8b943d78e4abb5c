"""Tables of final scores: methods by data sets, mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmfl_fast.federation.run_directory import write_atomically

Metric = Literal["accuracy", "macro_f1"]

# Method -> seed -> scores as in a run's result.json.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]

_TITLES: dict[Metric, str] = {"accuracy": "Accuracy in %", "macro_f1": "Macro F1 in %"}
# The overall accuracy weighs clients alike, the overall macro F1 data sets: federation/evaluation.py.
_OVERALL: dict[Metric, str] = {"accuracy": "all clients", "macro_f1": "mean of data sets"}


@dataclass(frozen=True)
class Score:
    """One method on one data set.

    Attributes:
        by_seed: seed -> score as a fraction; empty where the method has no such data set.
    """

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without one, or if a seed has NaN."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else math.nan

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (divisor n - 1); None for fewer than two."""
        if len(self.by_seed) < 2:
            return None
        return math.nan if math.isnan(self.mean) else statistics.stdev(self.by_seed.values())

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "n/a"
        return _percent(self.mean) + ("" if self.std is None else f" ± {_percent(self.std)}")


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one metric.

    Attributes:
        metric: ``"accuracy"`` or ``"macro_f1"``.
        columns: data sets in the order of their first appearance, then the overall score.
        rows: method -> one score per column, methods in the order given.
    """

    metric: Metric
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Score, ...]]

    @property
    def title(self) -> str:
        """What the numbers are and over how many seeds."""
        counts = sorted({len(scores[-1].by_seed) for scores in self.rows.values()})
        if counts == [1]:
            return f"{_TITLES[self.metric]}, one seed"
        told = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        return f"{_TITLES[self.metric]}, mean ± sample standard deviation over {told} seeds"

    def is_best(self, method: str, column: int) -> bool:
        """Whether no other method prints a higher mean; with one method nothing is best."""
        # Compared as printed: two equal numbers are either both marked or neither is.
        means = {m: float(_percent(scores[column].mean)) for m, scores in self.rows.items()}
        valid = [mean for mean in means.values() if not math.isnan(mean)]
        return len(self.rows) > 1 and bool(valid) and means[method] == max(valid)


def score_table(results: Results, metric: Metric) -> ScoreTable:
    """Arrange results by method and data set.

    Args:
        results: method -> seed -> ``accuracy``, ``macro_f1`` and ``per_dataset`` (name -> the same two), as
            fractions.
        metric: which score.

    Raises:
        ValueError: no result at all, one without the metric, or a data set named like the overall column.
    """
    if not any(results.values()):
        raise ValueError("results: expected at least one method with at least one seed; got none")
    datasets: list[str] = []
    for method, seeds in results.items():
        for seed, result in seeds.items():
            if metric not in result or "per_dataset" not in result:
                raise ValueError(
                    f"results[{method!r}][{seed}]: needs {metric!r} and 'per_dataset'; got {sorted(result)}"
                )
            datasets += [name for name in result["per_dataset"] if name not in datasets]
    if _OVERALL[metric] in datasets:
        raise ValueError(f"results: a data set may not be named like the column {_OVERALL[metric]!r}")

    def scores(seeds: Mapping[int, Mapping[str, Any]]) -> tuple[Score, ...]:
        per_dataset = [
            Score({s: r["per_dataset"][name][metric] for s, r in seeds.items() if name in r["per_dataset"]})
            for name in datasets
        ]
        return (*per_dataset, Score({s: r[metric] for s, r in seeds.items()}))

    rows = {method: scores(seeds) for method, seeds in results.items()}
    return ScoreTable(metric, (*datasets, _OVERALL[metric]), rows)


def accuracy_table(results: Results) -> ScoreTable:
    """Accuracy per data set as the mean over its clients, and over all clients."""
    return score_table(results, "accuracy")


def macro_f1_table(results: Results) -> ScoreTable:
    """Macro F1 on the pooled test rows of each data set, and its mean over data sets."""
    return score_table(results, "macro_f1")


def terminal_table(table: ScoreTable) -> Table:
    """Table for the terminal; the best of each column is bold."""
    shown = Table(
        title=Text(table.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    shown.add_column("method", no_wrap=True)
    for column in table.columns:
        # Folded, because a number that is cut off is a wrong number.
        shown.add_column(Text(column), justify="right", overflow="fold")
    for method, scores in table.rows.items():
        cells = [
            Text(str(score), style="bold green" if table.is_best(method, i) else "")
            for i, score in enumerate(scores)
        ]
        shown.add_row(Text(method), *cells)
    return shown


_PIPE_WIDTH = 200


def print_table(table: ScoreTable) -> None:
    """Print to the terminal; into a file or a pipe at full width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(terminal_table(table))


def markdown_table(table: ScoreTable) -> str:
    """Markdown with a title line; the best of each column is bold."""
    lines = [
        f"{table.title}:",
        "",
        _markdown_row(["method", *table.columns]),
        _markdown_row(["---", *("---:" for _ in table.columns)]),
    ]
    for method, scores in table.rows.items():
        cells = [f"**{s}**" if table.is_best(method, i) else str(s) for i, s in enumerate(scores)]
        lines.append(_markdown_row([method, *cells]))
    return "\n".join(lines) + "\n"


def scores_csv(tables: Sequence[ScoreTable]) -> str:
    """One line per method, data set, metric and seed, as fractions of full precision."""
    return _csv(
        ("method", "dataset", "metric", "seed", "value"),
        [
            (method, column, table.metric, seed, value)
            for table in tables
            for method, scores in table.rows.items()
            for column, score in zip(table.columns, scores, strict=True)
            for seed, value in score.by_seed.items()
        ],
    )


def summary_csv(tables: Sequence[ScoreTable]) -> str:
    """One line per method, data set and metric: number of seeds, mean, sample std (empty for one seed)."""
    return _csv(
        ("method", "dataset", "metric", "seeds", "mean", "std"),
        [
            (method, column, table.metric, len(score.by_seed), score.mean, score.std)
            for table in tables
            for method, scores in table.rows.items()
            for column, score in zip(table.columns, scores, strict=True)
        ],
    )


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Write ``scores.csv``, ``summary.csv`` and ``tables.md`` with accuracy and macro F1.

    Returns:
        The files written.
    """
    tables = [accuracy_table(results), macro_f1_table(results)]
    texts = {
        "scores.csv": scores_csv(tables),
        "summary.csv": summary_csv(tables),
        "tables.md": "\n".join(markdown_table(table) for table in tables),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
