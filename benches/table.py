"""The table that a bench prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .registry import BANDWIDTH, FLOOR, TIME, Target

_PIPE_WIDTH = 170
# Of what is told of a failure; the JSON file has all of it.
_FAILURE_WIDTH = 60
_QUANTILES = ("p20", "p50", "p80")


def print_table(
    lines: Sequence[dict[str, Any]], skipped: Sequence[dict[str, str]], facts: dict[str, Any]
) -> None:
    """Print to the terminal; into a file or a pipe at full width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(_table(lines, facts))
    for note in skipped:
        console.print(f"skipped: {note['primitive']} on {note['backend']}: {note['reason']}", markup=False)
    outcomes = [target["met"] for line in lines for target in line.get("targets", ())]
    told = f"{outcomes.count(True)} of {len(outcomes)} targets met"
    unknown = outcomes.count(None)
    console.print(f"{told}, {unknown} not measured" if unknown else told, markup=False, highlight=False)


def _table(lines: Sequence[dict[str, Any]], facts: dict[str, Any]) -> Table:
    """Times in milliseconds; a ratio below 1 means that ours is faster."""
    title = ", ".join(f"{key} {value}" for key, value in facts.items())
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("case", overflow="fold")
    table.add_column("backend", no_wrap=True)
    for column in ("error", "p20", "p50", "p80 [ms]"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("ours /", overflow="fold")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("target", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        head = [line["case"], line["backend"], f"{line['error']:.1e}" if "error" in line else ""]
        if "ours" not in line:
            told = line.get("failed", "WRONG RESULT, not timed")[:_FAILURE_WIDTH]
            table.add_row(*map(Text, [*head, "", "", "", told]), end_section=True)
            continue
        head += [f"{line['ours'][quantile]:.3g}" for quantile in _QUANTILES]
        for comparison in _comparisons(line):
            table.add_row(*map(Text, [*head, *comparison]))
            head = [""] * len(head)
        table.add_section()
    return table


def _comparisons(line: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What, measured, target, whether it is met."""
    targets = {target["quantity"]: target for target in line["targets"]}
    quantities = line["quantities"]
    shown = [name for name in quantities if name != TIME or TIME in targets]
    for name in [*shown, *(name for name in targets if name not in quantities)]:
        outcome = targets.get(name)
        yield (name, _measured(name, quantities.get(name)), *_judged(outcome))
    for name, reason in line.get("not_measured", {}).items():
        yield (name, "did not run", reason[:_FAILURE_WIDTH], "")


def _measured(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if name in (BANDWIDTH, FLOOR) else f"{value:.3g}"


def _judged(outcome: dict[str, Any] | None) -> tuple[str, str]:
    if outcome is None:
        return "", ""
    target = str(Target(outcome["quantity"], outcome["limit"], outcome["at_least"]))
    return target, {True: "met", False: "MISSED", None: "not measured"}[outcome["met"]]
