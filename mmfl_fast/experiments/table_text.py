"""A score table for the terminal, in Markdown and in LaTeX; the best of each column is bold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmfl_fast.experiments.missing_curves import MissingCurves
from mmfl_fast.experiments.scores import ScoreTable
from mmfl_fast.experiments.significance import PairedTest

STEPS = "steps"
STEPS_NOTE = (
    "The methods differ in effort; steps are optimiser steps of a client in a round, mean over clients."
)
_PIPE_WIDTH = 200
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{c: rf"\{c}" for c in "&%$#_{}"},
}


def terminal_table(table: ScoreTable) -> Table:
    """Table for the terminal, without its title."""
    shown = Table(box=box.SIMPLE_HEAD, padding=0)
    shown.add_column("method", no_wrap=True)
    for column in _columns(table):
        # Folded, because a number that is cut off is a wrong number.
        shown.add_column(Text(column), justify="right", overflow="fold")
    for method, cells in _rows(table):
        shown.add_row(Text(method), *(Text(text, style="bold green" if best else "") for text, best in cells))
    return shown


def print_table(table: ScoreTable) -> None:
    """Print title and table to the terminal; into a file or a pipe at full width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    # Not as the table's own title, which breaks at the width of the columns.
    console.print(Text(table.title), terminal_table(table))


def markdown_table(table: ScoreTable) -> str:
    """Markdown with a title line."""
    columns = _columns(table)
    lines = [
        f"{table.title}:",
        "",
        _markdown_row(["method", *columns]),
        _markdown_row(["---", *("---:" for _ in columns)]),
    ]
    for method, cells in _rows(table):
        lines.append(_markdown_row([method, *(f"**{text}**" if best else text for text, best in cells)]))
    if table.shows_steps:
        lines += ["", STEPS_NOTE]
    return "\n".join(lines) + "\n"


def markdown_gaps(curves: MissingCurves, column: int) -> str:
    """Gaps to the best other algorithm and breaking points in Markdown, with a title line."""
    header = ["method", *curves.gap_columns]
    rows = [_markdown_row([method, *cells]) for method, cells in curves.gap_rows(column)]
    title = f"{curves.gap_title(column)}:"
    rule = _markdown_row(["---", *("---:" for _ in curves.gap_columns)])
    return "\n".join([title, "", _markdown_row(header), rule, *rows]) + "\n"


def markdown_tests(tests: Sequence[PairedTest]) -> str:
    """The tests of one table in Markdown; empty without one."""
    if not tests:
        return ""
    lines = [
        "Best against runner-up, two-sided, not corrected for choosing them:",
        "",
        "| column | best | runner-up | difference in points | test | pairs | p |",
        "| --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    for t in tests:
        difference = f"{100 * t.difference:+.2f}"
        lines.append(_markdown_row([t.column, t.best, t.runner_up, difference, t.test, str(t.pairs), t.told]))
    return "\n".join(lines) + "\n"


def latex_table(table: ScoreTable, tests: Sequence[PairedTest] = ()) -> str:
    """A ``table`` that needs the package booktabs, with the tests as a note below."""
    columns = _columns(table)
    notes = [STEPS_NOTE] if table.shows_steps else []
    if tests:
        told = "; ".join(
            f"{t.column}: {t.best} - {t.runner_up} {100 * t.difference:+.2f} ({t.test}, {t.pairs} pairs, "
            f"{'p ' if t.p is not None else ''}{_relation(t)})"
            for t in tests
        )
        notes.append(f"Best against runner-up in points, two-sided, uncorrected: {told}.")
    body = [
        " & ".join(
            [_latex(method), *(rf"\textbf{{{_latex(t)}}}" if best else _latex(t) for t, best in cells)]
        )
        for method, cells in _rows(table)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            " & ".join(["method", *map(_latex, columns)]) + r" \\",
            r"\midrule",
            *(row + r" \\" for row in body),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip\footnotesize {_latex(note)}" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def _relation(test: PairedTest) -> str:
    return test.told if test.p is None or test.told.startswith("<") else f"= {test.told}"


def _columns(table: ScoreTable) -> list[str]:
    return [*table.columns, *([STEPS] if table.shows_steps else [])]


def _rows(table: ScoreTable) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Return method and cells, each with whether it is the best of its column."""
    rows = []
    for method, scores in table.rows.items():
        cells = [(str(score), table.is_best(method, i)) for i, score in enumerate(scores)]
        if table.shows_steps:
            cells.append((table.steps_told.get(method, "n/a"), False))
        rows.append((method, cells))
    return rows


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _latex(text: str) -> str:
    # A hyphen before a number is a minus sign.
    escaped = "".join(_LATEX.get(c, c) for c in text)
    return re.sub(r"(?<= )- ", r"$-$ ", re.sub(r"(?<= )-(?=[0-9])", "$-$", escaped)).replace("< ", "$<$ ")
