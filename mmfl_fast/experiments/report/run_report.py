"""The report of one run."""

from __future__ import annotations

from pathlib import Path

from mmfl_fast.experiments.recorded_run import RecordedRun, read_run
from mmfl_fast.experiments.report.film import similarity_film
from mmfl_fast.experiments.report.page import write_page
from mmfl_fast.experiments.report.pictures import shared_pictures, state_pictures
from mmfl_fast.experiments.report.rows import cost, data_rows, flat


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
    pictures = [*shared_pictures({run.config["algorithm"]: {run.config["seed"]: run}}), *state_pictures(run)]
    film = similarity_film(run)
    return write_page(
        run_dir,
        "run.html.j2",
        pictures,
        films=[film] if film else [],
        run=run,
        title=f"{run.config['algorithm']} on {run.config.get('federation', 'its federation')}",
        data=data_rows(run),
        scores=_score_rows(run),
        cost=cost(run.history),
        settings=flat({k: v for k, v in run.config.items() if k != "command"}),
        command=run.config.get("command"),
    )


def _score_rows(run: RecordedRun) -> list[tuple[str, float, float]]:
    """Return data set, accuracy and macro F1 as fractions; the overall scores last."""
    if run.scores is None:
        return []
    rows = [(name, s["accuracy"], s["macro_f1"]) for name, s in run.scores["per_dataset"].items()]
    return [*rows, ("overall", run.scores["accuracy"], run.scores["macro_f1"])]
