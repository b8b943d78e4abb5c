import itertools
import json
import multiprocessing
import resource
import threading

import pytest
import torch
import typer

from mmfl_fast.algorithms.per_fedavg import PerFedAvg
from mmfl_fast.benches import population
from mmfl_fast.benches.command import bench_population


def in_a_thread(*arguments):
    """In the place of a process."""
    ours, theirs = multiprocessing.Pipe()
    threading.Thread(target=population._count, args=(*arguments, theirs), daemon=True).start()
    ours.recv()
    return ours


def test_it_counts_in_turns_and_writes_what_it_prints(tmp_path, monkeypatch, capsys, set_threads):
    limits, rounds = [], []
    broadcast = PerFedAvg.broadcast

    def seen(self, state, client):
        clients = len(state.personal)
        rounds.append(clients)
        return broadcast(self, state, client)

    monkeypatch.setattr(PerFedAvg, "broadcast", seen)
    monkeypatch.setattr(population, "_begun", in_a_thread)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append((kind, limit)))
    set_threads(torch.get_num_threads())
    bench_population("60,120", sampled=20, rounds=2, memory_gib=2.0, json_file=tmp_path / "p.json")
    assert limits == [(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))] * 2
    # One to warm up, two in turns, and the last evaluations.
    assert [clients for clients, _ in itertools.groupby(rounds)] == [60, 120] * 4
    told = json.loads((tmp_path / "p.json").read_text())
    assert [(p["clients"], p["sampled"]) for p in told["populations"]] == [(60, 20), (120, 20)]
    first, second = told["populations"]
    assert second["personal"] == 2 * first["personal"] > 0
    assert 0 < first["on_disk"] < 10 * 2**20
    assert min(first["round"], first["set_up"], first["resident"]) > 0
    assert first["quartiles"][0] <= first["round"] <= first["quartiles"][1]
    assert "1.00" in capsys.readouterr().out


def test_a_process_that_ends_is_told():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(RuntimeError, match="ended before its time"):
        population._answer(ours)


def test_a_population_smaller_than_its_sample_is_refused():
    with pytest.raises(typer.BadParameter, match=r"integers of at least 50, .* got '100,49'"):
        bench_population("100,49", sampled=50)
