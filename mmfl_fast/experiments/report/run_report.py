"""The report of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmfl_fast.experiments.recorded_run import RecordedRun, read_run
from mmfl_fast.experiments.report.film import similarity_film
from mmfl_fast.experiments.report.page import write_page
from mmfl_fast.experiments.report.pictures import presence_picture, shared_pictures, state_pictures
from mmfl_fast.experiments.report.rows import cost, cost_per_client, data_rows, flat
from mmfl_fast.experiments.scores import SCORES, Metric


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
    pictures = [
        *shared_pictures({run.config["algorithm"]: {run.config["seed"]: run}}),
        *presence_picture(run),
        *state_pictures(run),
    ]
    metrics = [metric for metric in SCORES if metric.name in (run.scores or {})]
    film = similarity_film(run)
    return write_page(
        run_dir,
        "run.html.j2",
        pictures,
        films=[film] if film else [],
        run=run,
        title=f"{run.config['algorithm']} on {run.config.get('federation', 'its federation')}",
        data=data_rows(run),
        metrics=metrics,
        scores=_score_rows(run, metrics),
        cost=cost(run.history),
        per_client=cost_per_client(run.history),
        settings=flat({k: v for k, v in run.config.items() if k != "command"}),
        command=run.config.get("command"),
    )


def _score_rows(run: RecordedRun, metrics: Sequence[Metric]) -> list[tuple[str, list[float]]]:
    """Return data set and its scores as fractions; the overall scores last."""
    if run.scores is None:
        return []
    rows = [*run.scores["per_dataset"].items(), ("overall", run.scores)]
    return [(name, [scores[metric.name] for metric in metrics]) for name, scores in rows]
