"""The files of a comparison over missing rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmfl_fast.experiments.missing_curves import BREAKING_SHARE, MissingCurves
from mmfl_fast.experiments.table_files import csv_text, write_texts
from mmfl_fast.experiments.table_text import latex_table, markdown_gaps, markdown_table


def missing_csv(curves: Sequence[MissingCurves]) -> str:
    """One line per setting, metric, data set, method and missing rate.

    ``gap`` is the method minus ``best_other`` over their common seeds; ``breaking_point`` the first rate at
    which the method is below ``breaking_share`` of its own score at the lowest rate, empty if it never is.
    """
    return csv_text(
        (
            *("metric", "dataset", "method", "missing_rate", "seeds", "mean", "std"),
            *("best_other", "gap", "gap_std", "breaking_share", "breaking_point"),
        ),
        [
            (
                each.setting,
                (each.metric.name, each.columns[column], method, rate, *_at(each, method, rate, column)),
            )
            for each in curves
            for column in range(len(each.columns))
            for method in each.curves
            for rate in each.rates
        ],
    )


def write_missing_tables(curves: Sequence[MissingCurves], folder: Path) -> list[Path]:
    """Write ``missing.csv``, ``missing.md`` and ``missing.tex``: methods by rates, data set by data set.

    Returns:
        The files written; none without curves.
    """
    if not curves:
        return []
    tables = [(each, column, each.table(column)) for each in curves for column in each.shown]
    scored = [each for each in curves if each.metric.higher_is_better]
    texts = {
        "missing.csv": missing_csv(scored),
        "missing.md": "\n".join(
            text
            for each, column, table in tables
            for text in (markdown_table(table), markdown_gaps(each, column) if each in scored else "")
            if text
        ),
        "missing.tex": "\n".join(latex_table(table) for _, _, table in tables),
    }
    return write_texts(texts, folder)


def _at(curves: MissingCurves, method: str, rate: float, column: int) -> tuple[object, ...]:
    score, gap = curves.score(method, rate, column), curves.gap(method, rate, column)
    ahead = (None, None, None) if gap is None else (gap.best, gap.difference.mean, gap.difference.std)
    point = curves.breaking_point(method, column)
    return len(score.by_seed), score.mean, score.std, *ahead, BREAKING_SHARE, point
