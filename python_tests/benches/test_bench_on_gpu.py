"""What the bench does on a GPU, on a CPU that plays one: every line of the run, and none of the numbers."""

import json
from types import SimpleNamespace

import pytest
import torch

from mmfl_fast import use_backend
from mmfl_fast.benches import machine, measure, ops, prototype_loss, timing
from mmfl_fast.benches.registry import Case

L2_BYTES = 300


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        assert isinstance(end, Event)
        return 2.0


@pytest.fixture
def played_gpu(monkeypatch, small):
    """It has been asked for 100 bytes more whenever it is asked how many there are."""
    allocated = iter(range(0, 1_000_000, 100))
    plays = {
        "is_available": lambda: True,
        "Event": Event,
        "memory_allocated": lambda: next(allocated),
        "max_memory_allocated": lambda: 1_000_000_000,
        "reset_peak_memory_stats": lambda: None,
        "synchronize": lambda: None,
        "_sleep": lambda _: None,
        "empty_cache": lambda: None,
        "current_device": lambda: 0,
        "get_device_name": lambda: "a played GPU",
        "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=L2_BYTES),
    }
    for name, play in plays.items():
        monkeypatch.setattr(torch.cuda, name, play)
    monkeypatch.setattr(machine, "_DEVICE", "cpu")
    monkeypatch.setattr(machine, "_COPIED", 1024)
    monkeypatch.setattr(machine, "_MATRIX", 8)
    build = Case.calls
    monkeypatch.setattr(Case, "calls", lambda case, device: build(case, {"cuda": "cpu"}[device]))
    for wing in ops._WINGS:
        monkeypatch.setattr(wing, "GPU_CASES", [small(case, memory=True) for case in wing.GPU_CASES])


def test_a_whole_run(played_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ops, "missing", lambda _, backend, __: "not here" if backend == "triton" else "")
    assert ops.run("cuda", only="", seconds=0, json_file=tmp_path / "gpu.json")
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["machine"]["gpu"] == "a played GPU"
    assert written["machine"]["copy [GB/s]"] == round(2 * 1024 / 2.0 / 1e6)
    assert {note["primitive"] for note in written["skipped"]} == {
        "gram",
        "mix",
        "cross_gram_sq",
        "prototype_loss",
    }
    assert [line["case"] for line in written["cases"]] == [case.name for case in ops.cases("cuda")]
    for line in written["cases"]:
        assert line["ours"] == {"p20": 2.0, "p50": 2.0, "p80": 2.0}
        missing = {target["quantity"] for target in line["targets"] if target["measured"] is None}
        assert missing <= {prototype_loss.COMPILED}
    printed = capsys.readouterr().out
    assert "skipped: gram on triton: not here" in printed


def test_triton_is_compared_with_the_extension(played_gpu, monkeypatch):
    for module in (measure, timing):
        monkeypatch.setattr(module, "use_backend", lambda _: use_backend("native"))
    monkeypatch.setattr(measure, "missing", lambda *_: "")
    case = ops.cases("cuda")[0]
    assert "native" not in measure.measure(case, "native", "cuda", seconds=0, rates=None)["baselines"]
    line = measure.measure(case, "triton", "cuda", seconds=0, rates=None)
    assert line["baselines"]["native"]["ratio"] == 1.0
    assert line["targets"][-1] == {
        "quantity": "native",
        "limit": 1.3,
        "at_least": False,
        "measured": 1.0,
        "met": True,
    }


def test_inputs_are_made_until_they_leave_the_cache(played_gpu):
    # Sets of 100 bytes for four times 300.
    assert len(measure._sets(ops.cases("cuda")[0], "cuda")) == 12
