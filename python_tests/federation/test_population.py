"""Populations of which a round touches few: on disk the same bits, and work as the sample is worth."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import algorithms, data
from mmfl_fast.data.federation import Clients
from mmfl_fast.experiments.recorded_run import read_run
from mmfl_fast.experiments.report import write_run_report
from mmfl_fast.federation import EngineConfig, ParameterTable, disk_table, run_directory, simulation
from mmfl_fast.federation.config import split_options
from mmfl_fast.federation.disk_table import DiskTable

PERSONAL = ("local", "m3fed", "per-fedavg", "moon", "creamfl", "fedmsplit", "fusion-fedmsplit", "mat-fl")


def rows_of(state):
    return {
        (name, row): table[row]
        for name, table in vars(state).items()
        if isinstance(table, ParameterTable)
        for row in table
    }


def assert_same(first, second):
    a, b = rows_of(first.state), rows_of(second.state)
    assert a.keys() == b.keys()
    assert a
    assert all(torch.equal(tensor, b[row][name]) for row, own in a.items() for name, tensor in own.items())
    assert all(torch.equal(t, second.state.shared[n]) for n, t in first.state.shared.items())
    assert torch.equal(first.final["per_client"], second.final["per_client"])
    assert [line["train_loss"] for line in first.history] == [line["train_loss"] for line in second.history]


@pytest.mark.parametrize("method", PERSONAL)
def test_memory_and_disk_end_at_the_same_bits(toy_federation, small, method):
    # An odd width: in a stack most clients' rows then begin at no round address.
    known = algorithms.get(method).Config.model_fields
    odd = {"width": 13, "operator_rows": 7} if "operator_rows" in known else {}
    results = [
        mf.run(
            toy_federation,
            method,
            rounds=3,
            config=small(method, participation=0.5, client_state=where, **odd),
        )
        for where in ("memory", "disk")
    ]
    tables = algorithms.get(method)().tables_of_clients
    assert all(isinstance(getattr(results[1].state, name), DiskTable) for name in tables)
    assert_same(*results)


@pytest.mark.parametrize(
    ("method", "deaths"),
    [("local", (0, 1, 5, 17)), ("per-fedavg", (11,)), ("fedmsplit", (11,)), ("m3fed", (11, 12))],
)
def test_a_kill_while_rows_are_written_loses_nothing(
    toy_federation, small, tmp_path, monkeypatch, method, deaths
):
    config = small(method, participation=0.5, client_state="disk", checkpoint_every=2)
    whole = mf.run(toy_federation, method, rounds=7, config=config)
    for writes in deaths:
        folder = tmp_path / str(writes)
        killed_after(writes, toy_federation, method, folder, config, monkeypatch)
        assert_same(whole, resumed(toy_federation, method, folder, config))


def killed_after(writes, federation, method, folder, config, monkeypatch):
    write, done = disk_table._RowFile.write, []

    def dies(self, row, slot, parameters):
        if len(done) == writes:
            # Half of a row is there when the end comes.
            write(self, row, slot, {n: torch.full_like(t, torch.nan) for n, t in parameters.items()})
            raise KeyboardInterrupt
        done.append(row)
        write(self, row, slot, parameters)

    with monkeypatch.context() as patched:
        patched.setattr(disk_table._RowFile, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            mf.run(federation, method, rounds=7, out=folder, config=config)


def test_the_checkpoint_before_the_newest_will_do(toy_federation, small, tmp_path, monkeypatch):
    config = small("local", participation=0.5, client_state="disk", checkpoint_every=2)
    whole = mf.run(toy_federation, "local", rounds=7, config=config)
    original = simulation._Run.round

    def dies(self, state, number):
        if number == 5:
            raise KeyboardInterrupt
        return original(self, state, number)

    with monkeypatch.context() as patched:
        patched.setattr(simulation._Run, "round", dies)
        with pytest.raises(KeyboardInterrupt):
            mf.run(toy_federation, "local", rounds=7, out=tmp_path, config=config)
    shutil.rmtree(tmp_path / "checkpoints" / "round-000004")
    assert_same(whole, resumed(toy_federation, "local", tmp_path, config))


def resumed(federation, method, folder, config):
    result = mf.run(federation, method, rounds=7, out=folder, config=config, resume=True)
    lines = [line for line in result.history if "accuracy" in line]
    assert [line["round"] for line in lines] == list(range(1, 8))
    return result


def test_only_some_clients_are_tested_and_the_same_every_round(toy_federation, small):
    config = small("local", participation=0.5, evaluate_clients=2)
    first, second = (
        mf.run(toy_federation, "local", rounds=r, config=config).final["per_client"] for r in (1, 3)
    )
    everyone = mf.run(toy_federation, "local", rounds=3, config={**config, "evaluate_clients": None})
    tested = ~second.isnan()
    assert int(tested.sum()) == 2
    assert torch.equal(tested, ~first.isnan())
    assert torch.equal(second[tested], everyone.final["per_client"][tested])
    result = mf.run(toy_federation, "local", rounds=3, config={**config, "evaluate_clients": 99})
    assert torch.equal(result.final["per_client"], everyone.final["per_client"])


def test_of_very_many_clients_the_report_shows_nobody(toy_federation, small, tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "_MOST_DESCRIBED", 5)
    mf.run(toy_federation, "m3fed", rounds=1, out=tmp_path, config=small("m3fed"))
    assert json.loads((tmp_path / "clients.json").read_text()) == []
    assert json.loads((tmp_path / "result.json").read_text())["per_client"] == []
    run = read_run(tmp_path)
    assert run.measured["accuracy"] == run.history[-1]["accuracy"]
    assert write_run_report(tmp_path).exists()


def population(clients):
    rng = np.random.default_rng(0)
    return data.from_arrays(
        {"x": rng.normal(size=(3 * clients, 4)).astype(np.float32)},
        np.arange(3 * clients) % 3,
        np.repeat(np.arange(clients), 3),
        name="many",
    )


def config_of(clients):
    model = {"width": 32, "operator_rows": 16, "layers": 1, "batch_size": 4, "local_epochs": 1}
    return {**model, "participation": 20 / clients, "evaluate_clients": 20, "client_state": "disk"}


@pytest.mark.parametrize("method", ["per-fedavg", "fedmsplit"])
def test_work_of_a_round_is_that_of_its_sample(monkeypatch, set_threads, method):
    set_threads(1)
    counts = {}
    for clients in (2_000, 20_000):
        calls, original = [0], simulation._Run.round

        def counted(self, state, number, calls=calls, original=original):
            if number == 0:
                # It records the native steps.
                return original(self, state, number)

            def count(frame, event, argument):
                calls[0] += event in ("call", "c_call")

            sys.setprofile(count)
            try:
                state, line = original(self, state, number)
                self.evaluate(state)
                return state, line
            finally:
                sys.setprofile(None)

        with monkeypatch.context() as patched:
            patched.setattr(simulation._Run, "round", counted)
            result = mf.run(population(clients), method, rounds=3, config=config_of(clients))
        assert [line["clients"] for line in result.history] == [20] * 3
        counts[clients] = calls[0]
    # What is drawn how often depends on the sample, but by little.
    assert counts[20_000] < 1.1 * counts[2_000]


@pytest.mark.parametrize("method", ["per-fedavg", "fedavg", "local", "meta-har", "fedmeta", "mcarn"])
def test_setting_up_makes_no_object_for_each_client(small, monkeypatch, method):
    made, make = [], Clients._make
    monkeypatch.setattr(Clients, "_make", lambda self, index: (made.append(index), make(self, index))[1])
    kind = algorithms.get(method)
    algorithm = kind(split_options(small(method), EngineConfig, kind.Config)[1])
    state = algorithm.setup(population(300), torch.Generator().manual_seed(0))
    assert made == []
    assert len(state.personal) == (0 if method == "fedavg" else 300)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak of memory")
def test_memory_grows_by_little_per_client(tmp_path):
    clients, status = 20_000, Path("/proc/self/status")

    def resident(line):
        return 1024 * int(re.search(rf"{line}:\s+(\d+) kB", status.read_text())[1])

    federation = population(clients)
    # Code that is imported on first use does not count.
    mf.run(population(50), "per-fedavg", rounds=1, config=config_of(50))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = mf.run(federation, "per-fedavg", rounds=3, out=tmp_path, config=config_of(clients))
    grown = resident("VmHWM") - before
    own = sum(t.nbytes for t in result.state.personal[0].values())
    assert own > 7_000
    assert grown < 1_000 * clients
    # A checkpoint is a few bytes per client, and the files of the others have holes.
    assert sum(f.stat().st_size for f in (tmp_path / "checkpoints").rglob("*")) < 3 * clients + 100_000
    assert sum(512 * f.stat().st_blocks for f in (tmp_path / "personal").iterdir()) < 60 * (own + 2 * 4096)
