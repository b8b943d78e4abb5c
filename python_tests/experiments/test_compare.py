"""Comparisons on the demo federation: their cells, what a second call does, and what is refused."""

import io
import json
import math
import multiprocessing
import time
from dataclasses import replace

import pytest
from rich.console import Console

from mmfl_fast.experiments.compare import CellError, compare, refuse_unfair
from mmfl_fast.experiments.compare_progress import CompareProgress
from mmfl_fast.experiments.fairness import UnfairComparisonError
from mmfl_fast.experiments.plan import Axis, Method, Plan, cell_folder
from mmfl_fast.experiments.recorded_comparison import read_comparison

TINY = ("rounds=2", "width=8", "operator_rows=4", "layers=1", "local_epochs=1")
LONGER = "fedavg,local_epochs=2"
METHODS = ("local", "m3fed", "m3fed,clustering=none", LONGER)


def plan_of(*labels, seeds=(0,), axes=(), changes=(), unequal=()):
    methods = tuple(map(Method.parse, labels))
    return Plan("demo", (*TINY, *changes), methods, tuple(seeds), tuple(axes), tuple(unequal))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    plan = plan_of(*METHODS, seeds=[0, 1], axes=[Axis("data.alpha", (1, 0.4))], unequal=[LONGER])
    compare(plan, out, jobs=2, progress=False)
    return plan, out, read_comparison(out)


def test_every_cell_has_a_result(finished):
    plan, _, read = finished
    for setting in plan.settings:
        results = read.results(setting)
        assert {m: set(by_seed) for m, by_seed in results.items()} == {m: {0, 1} for m in METHODS}
        for by_seed in results.values():
            for result in by_seed.values():
                assert set(result["per_dataset"]) == {"digits", "cancer", "wine", "iris"}
                assert 0 < result["accuracy"] < 1
                assert not math.isnan(result["macro_f1"])
                assert 0 < result["client_pass"] < 10
                assert all(0 < scores["client_pass"] < 10 for scores in result["per_dataset"].values())


def test_settings_and_options_reach_their_runs(finished):
    _, _, read = finished
    for cell, run in read.runs.items():
        assert run.config["data"]["alpha"] == dict(cell.setting.values)["data.alpha"]
        wanted = {"m3fed": "spectral", "m3fed,clustering=none": "none"}.get(cell.method.label)
        assert run.config["config"].get("clustering") == wanted
        assert run.config["seed"] == cell.seed
    digests = {(cell.setting, cell.seed): run.config["data_digest"] for cell, run in read.runs.items()}
    assert len(digests) == len(set(digests.values())) == 4


def test_steps_of_the_table_are_those_of_a_client_and_round(finished):
    plan, _, read = finished
    setting = plan.settings[0]
    # Two passes in batches of 32.
    steps = [
        sum(2 * math.ceil(client["train"] / 32) for client in run.clients) / len(run.clients)
        for run in read.of(setting)["local"].values()
    ]
    assert [run.measured["steps_per_client"] for run in read.of(setting)["local"].values()] == steps
    table = read.tables(setting)[0]
    mean = sum(steps) / 2
    assert table.steps == pytest.approx({**dict.fromkeys(METHODS, mean), LONGER: 2 * mean})
    assert table.shows_steps


def test_a_second_call_finishes_what_is_missing_and_changes_nothing_else(finished, monkeypatch):
    plan, out, before = finished
    longer = replace(plan, seeds=(0, 1, 2))
    cells = list(plan.cells)
    lost, kept = cell_folder(out, cells[0]), cell_folder(out, cells[-1])
    (lost / "result.json").unlink()
    metrics = (kept / "metrics.jsonl").read_text()
    checked = []
    monkeypatch.setattr("mmfl_fast.experiments.compare.refuse_unfair", lambda *given: checked.append(given))
    compare(longer, out, jobs=2, progress=False)
    assert checked == [(longer, out)]
    after = read_comparison(out)
    assert set(after.plan.seeds) == {0, 1, 2}
    for setting in plan.settings:
        results = after.results(setting)
        assert {seed for by_seed in results.values() for seed in by_seed} == {0, 1, 2}
        old = {m: {seed: by_seed[seed] for seed in (0, 1)} for m, by_seed in results.items()}
        assert old == before.results(setting)
    assert (kept / "metrics.jsonl").read_text() == metrics


def test_unequal_effort_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UnfairComparisonError, match=r"m3fed,local_epochs=2 takes .* steps"):
        compare(plan_of("local", "m3fed,local_epochs=2"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_unequal_effort_is_found_in_what_the_runs_wrote(finished):
    plan, out, _ = finished
    refuse_unfair(plan, out)
    path = cell_folder(out, list(plan.cells)[-len(METHODS)]) / "metrics.jsonl"
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines[1]["optimiser_steps"] += 3
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UnfairComparisonError, match=r"seed-1, round 2.*m3fed takes .*\(-3 steps"):
        refuse_unfair(plan, out)
    path.write_text(text)


def test_a_failing_cell_is_named_and_stops_the_others(tmp_path):
    endless = plan_of("local", "fedavg", changes=["rounds=100000", "methods.local.learning_rate=1e30"])
    began = time.monotonic()
    with pytest.raises(CellError, match=r"local with seed 0: client .* non-finite") as raised:
        compare(endless, tmp_path, jobs=2, progress=False)
    assert "DivergedError" in repr(raised.value.__cause__)
    assert time.monotonic() - began < 60
    # A process that the pool's own thread reaps at this very moment is still listed.
    while multiprocessing.active_children():
        assert time.monotonic() - began < 60
        time.sleep(0.01)


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def lines_of(updates, show=None, behind=0):
    """What is printed without a terminal for updates ``(seconds, runs, rounds, running)``."""
    clock, file = Clock(), io.StringIO()
    progress = CompareProgress(4, 40, behind, show, Console(file=file, width=40), clock)
    with progress:
        for seconds, cells, rounds, running in updates:
            clock.now = 100.0 + seconds
            progress.update(cells, rounds, running)
    return file.getvalue().splitlines()


def test_without_a_terminal_a_line_comes_now_and_then():
    updates = [(t, 0, t // 10, "local with seed 0 (1 of 10)") for t in range(200)]
    lines = lines_of(updates)
    assert [line.split(" rounds")[0] for line in lines] == [f"0 of 4 runs, {n} of 40" for n in (1, 7, 13, 19)]
    assert lines[1].endswith("; now local with seed 0 (1 of 10)")


def test_lines_tell_the_time_that_remains():
    (line,) = lines_of([(60, 1, 20, "")], behind=10)
    assert line == "1 of 4 runs, 20 of 40 rounds (50 %), 0:01:00 so far, about 0:02:00 to go"
    (line,) = lines_of([(60, 1, 10, "")], behind=10)
    assert line.endswith("unknown to go")


def test_the_end_is_told_at_once_and_silence_is_kept():
    assert lines_of([(2, 4, 40, "")]) == [
        "4 of 4 runs, 40 of 40 rounds (100 %), 0:00:02 so far, about 0:00:00 to go"
    ]
    assert lines_of([(2, 3, 40, "a"), (3, 3, 40, "a")]) == []
    assert lines_of([(2, 4, 40, ""), (90, 4, 40, "")], show=False) == []


def test_on_a_terminal_there_is_a_bar():
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True)
    with CompareProgress(4, 40, 10, None, console) as progress:
        progress.update(1, 20, "local with seed 0")
    assert "1 of 4 runs" in file.getvalue()
    assert "50%" in file.getvalue()
    assert "so far" not in file.getvalue()
