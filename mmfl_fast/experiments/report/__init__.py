"""One self-contained ``report.html`` for a run or a comparison, and its pictures as PNG files."""

from mmfl_fast.experiments.report.comparison_report import write_comparison_report
from mmfl_fast.experiments.report.run_report import write_run_report

__all__ = ["write_comparison_report", "write_run_report"]
