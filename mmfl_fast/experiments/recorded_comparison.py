"""What the folder of a comparison says, read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmfl_fast.experiments.plan import Cell, Plan, Setting, cell_folder
from mmfl_fast.experiments.recorded_run import RecordedRun, ReportError, read_run
from mmfl_fast.experiments.scores import Results, ScoreTable, score_tables


@dataclass(frozen=True)
class RecordedComparison:
    """A comparison, finished or not.

    Attributes:
        path: its folder.
        plan: what it consists of.
        runs: those that have begun.
    """

    path: Path
    plan: Plan
    runs: Mapping[Cell, RecordedRun]

    def of(self, setting: Setting) -> dict[str, dict[int, RecordedRun]]:
        """Method -> seed -> run; methods that have not begun are absent."""
        found: dict[str, dict[int, RecordedRun]] = {}
        for method in self.plan.methods:
            cells = [Cell(setting, method, seed) for seed in self.plan.seeds]
            own = {cell.seed: self.runs[cell] for cell in cells if cell in self.runs}
            if own:
                found[method.label] = own
        return found

    def unfinished(self, setting: Setting) -> list[tuple[Cell, str]]:
        """Cells without a result, and how far each is."""
        cells = [cell for cell in self.plan.cells if cell.setting == setting]
        return [
            (cell, self.runs[cell].progress if cell in self.runs else "not begun")
            for cell in cells
            if cell not in self.runs or self.runs[cell].result is None
        ]

    def results(self, setting: Setting) -> Results:
        """Of the runs that are complete."""
        return {
            method: {seed: run.measured for seed, run in runs.items() if run.measured is not None}
            for method, runs in self.of(setting).items()
        }

    def tables(self, setting: Setting) -> list[ScoreTable]:
        """The score tables of a setting; none before its first result."""
        results = self.results(setting)
        return score_tables(results, dict(setting.values)) if any(results.values()) else []

    @property
    def all_tables(self) -> list[ScoreTable]:
        """Those of all settings."""
        return [table for setting in self.plan.settings for table in self.tables(setting)]


def read_comparison(out: Path) -> RecordedComparison:
    """Read the folder of a comparison.

    Raises:
        PlanError, ReportError: a file is missing or damaged, or no run has begun; names it.
    """
    plan = Plan.read(out)
    folders = {cell: cell_folder(out, cell) for cell in plan.cells}
    runs = {cell: read_run(folder) for cell, folder in folders.items() if (folder / "config.yaml").exists()}
    if not runs:
        raise ReportError(f"{out}: no run of this comparison has begun")
    return RecordedComparison(out, plan, runs)
