import json
import math
import multiprocessing
import time

import pytest

from mmfl_fast.experiments.compare import (
    CellError,
    UnequalEffortError,
    cell_folder,
    compare,
    refuse_unequal_effort,
)
from mmfl_fast.experiments.presets import load_experiment

TINY = ["rounds=2", "width=8", "operator_rows=4", "layers=1", "local_epochs=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    experiment = load_experiment("demo", TINY)
    return experiment, out, compare(experiment, ["local", "m3fed"], [0, 1], out, jobs=2)


def test_every_cell_has_a_result(finished):
    _, _, results = finished
    assert {m: set(by_seed) for m, by_seed in results.items()} == {"local": {0, 1}, "m3fed": {0, 1}}
    for by_seed in results.values():
        for result in by_seed.values():
            assert set(result["per_dataset"]) == {"digits", "cancer", "wine", "iris"}
            assert 0 < result["accuracy"] < 1
            assert not math.isnan(result["macro_f1"])


def test_a_second_call_finishes_what_is_missing_and_changes_nothing_else(finished):
    experiment, out, results = finished
    lost = cell_folder(out, "local", 1) / "result.json"
    lost.unlink()
    kept = cell_folder(out, "m3fed", 0) / "metrics.jsonl"
    before = kept.read_text()
    assert compare(experiment, ["local", "m3fed"], [0, 1], out, jobs=1) == results
    assert kept.read_text() == before


def test_unequal_effort_is_refused(finished):
    _, out, _ = finished
    refuse_unequal_effort(out, ["local", "m3fed"], [0, 1])
    path = cell_folder(out, "local", 0) / "metrics.jsonl"
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines[0]["optimiser_steps"] += 3
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UnequalEffortError, match=r"seed 0.*local: \d+ steps.*m3fed: \d+ steps"):
        refuse_unequal_effort(out, ["local", "m3fed"], [0, 1])
    path.write_text(text)


def test_methods_are_checked_before_anything_runs(tmp_path):
    experiment = load_experiment("demo", TINY)
    with pytest.raises(ValueError, match="each may be named once"):
        compare(experiment, ["local", "local"], [0], tmp_path)
    with pytest.raises(ValueError, match="unknown algorithm 'fedavgg'; did you mean 'fedavg'"):
        compare(experiment, ["fedavgg"], [0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_cell_is_named_and_stops_the_others(tmp_path):
    endless = [*TINY, "rounds=100000", "methods.local.learning_rate=1e30"]
    began = time.monotonic()
    with pytest.raises(CellError, match=r"local with seed 0: client .* non-finite") as raised:
        compare(load_experiment("demo", endless), ["local", "fedavg"], [0], tmp_path, jobs=2)
    assert "DivergedError" in repr(raised.value.__cause__)
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()
