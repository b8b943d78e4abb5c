import json

import pytest
from typer.testing import CliRunner

from mmfl_fast.benches import rounds
from mmfl_fast.cli import app


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "rounds", "--sequential", "8", "--rounds", "1", *arguments])


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small = {"width": 8, "operator_rows": 4, "layers": 2}
    monkeypatch.setattr(rounds, "_CONFIG", {**rounds._CONFIG, **small, "sketch": 16})


def test_it_measures_rounds_and_writes_them(tmp_path):
    file = tmp_path / "rounds.json"
    shown = bench("--clients", "9", "--rows", "80", "--json", str(file))
    assert shown.exit_code == 0, shown.output
    line = json.loads(file.read_text())["round"]
    assert line["error"] <= 1e-6
    assert line["seconds"]["clients"] > 0 < line["seconds"]["server"]
    assert line["microseconds_per_client"] == pytest.approx(1e6 * line["seconds"]["clients"] / 9)
    assert line["share_of_the_floor"] is None
    assert "local training" in shown.output


def test_nothing_is_timed_when_stacks_are_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(rounds, "_error", lambda _: float("nan"))
    file = tmp_path / "rounds.json"
    shown = bench("--clients", "9", "--json", str(file))
    assert shown.exit_code == 1
    assert "not timed" in shown.output
    assert not file.exists()


def test_work_is_that_of_the_layers():
    # Of the default model, whose products dominate: twice the forward products in each direction that is
    # asked for, and no more than three times.
    work = rounds._work(10, 128)
    params = 64 * 512 + 512 * 512
    assert 2 * 2 * 2 * params * 128 * 10 <= work.flops <= 40 * 2 * params * 128 * 10
    assert rounds._work(20, 128).flops == 2 * work.flops
    assert rounds._work(20, 128).moved == 2 * work.moved


@pytest.mark.gpu
def test_a_gpu_has_a_floor(tmp_path):
    file = tmp_path / "rounds.json"
    shown = bench("--device", "cuda", "--clients", "64", "--json", str(file))
    assert shown.exit_code == 0, shown.output
    assert 0 < json.loads(file.read_text())["round"]["share_of_the_floor"] <= 1
