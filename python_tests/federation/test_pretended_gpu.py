"""Whole rounds of every method on a device that behaves as a GPU, in a process of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

import mmfl_fast as mf

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices written in Python", allow_module_level=True)

SCRIPT = Path(__file__).with_name("rounds_on_a_pretended_gpu.py")
CASES = {
    **{method: (method, {}) for method in mf.algorithms.names()},
    "all switches": ("m3fed", {"retraction": "qr", "meta_gradient": "hessian-free", "layerwise": True}),
    "landmarks": ("m3fed", {"sketch": 16, "landmarks": 4, "clusters": 2, "compared": "updates"}),
    "on disk": ("m3fed", {"client_state": "disk", "participation": 0.7}),
    "one by one": ("m3fed", {"chunk": 1}),
    "launch by launch": ("m3fed", {"step_graphs": "off"}),
    "second order": ("3fm", {"order": "second", "inner": "adam", "server": "gradient"}),
    "each modality alone": ("fedmvp", {"test_alone": True}),
    "two names": ("two names", {}),
}
# A loss that cannot be recorded.
SENDS = {"sends": ("sends", {}), "sends, not recorded": ("sends", {"step_graphs": "off"})}
# Adam turns the rounding error of a gradient that is zero into steps.
LOOSE = ("fedmvp", "joint-fedavg", "each modality alone")


# Of each kind of state and aggregation, for two processes that share the clients.
SHARED = {method: CASES[method] for method in ("m3fed", "pcgrad", "fedmvp", "on disk")}


def work(file, cases, **environment):
    """The process that runs the cases and writes what it found."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps(cases), str(file)],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, file):
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("pretended") / "found.json"
    return ended(work(file, {**CASES, **SENDS}), file)


def test_two_processes_end_where_they_do_on_a_cpu(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    files = [tmp_path / str(rank) for rank in range(2)]
    both = [
        work(file, SHARED, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank, file in enumerate(files)
    ]
    for process, file in zip(both, files, strict=True):
        for case, of_case in ended(process, file).items():
            assert "problem" not in of_case, of_case
            assert of_case["worst"] <= (1e-3 if case in LOOSE else 2e-4), (case, of_case)


@pytest.mark.parametrize("case", CASES)
def test_a_method_runs_there_and_ends_where_it_does_on_a_cpu(found, case):
    assert "problem" not in found[case]
    assert found[case]["worst"] <= (1e-3 if case in LOOSE else 2e-4), found[case]["where"]


@pytest.mark.parametrize("case", [case for case in CASES if case != "one by one"])
def test_training_waits_for_no_value(found, case):
    assert found[case].get("read", 0) == 0


@pytest.mark.parametrize("case", [case for case in CASES if case != "one by one"])
def test_rows_are_sent_once_a_stack(found, case):
    # Two rounds of three stacks, two of them of full size; row numbers, numbers of steps, and SMIL's noise.
    stacks = 4 if case == "on disk" else 6
    assert found[case]["sent"] <= 2 * stacks + (4 if case == "smil" else 0)


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("one by one", "launch by launch")])
def test_repeated_steps_are_recorded(found, case):
    assert found[case]["repeated"] >= found[case]["recorded"] > 0


def test_steps_are_not_recorded_when_that_is_off(found):
    assert "recorded" not in found["launch by launch"]


def test_a_loss_that_cannot_be_recorded_is_named_with_the_setting_that_helps(found):
    problem = found["sends"]["problem"]
    assert problem.startswith("RuntimeError: phase 'personal': its step cannot be recorded (sent: not ")
    assert "step_graphs=off" in problem
    assert "problem" not in found["sends, not recorded"]
