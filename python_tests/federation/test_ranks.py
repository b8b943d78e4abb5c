"""Two, three and four processes on this machine; ranks_at_work.py says what they do."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmfl_fast as mf
from mmfl_fast.cli import main
from mmfl_fast.federation import ranks

SCRIPT = Path(__file__).with_name("ranks_at_work.py")


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """Folder of what the processes left."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    for work in ("two_ranks", "four_ranks", "one_process"):
        assert not any(json.loads((folder / work / "ended.json").read_text())), done.stderr
    return folder


# They compare what a round has changed, which has fewer digits than the models: 1e-6 there is 1e-4 here.
OF_PAIRS = ("affinity", "consensus", "cka")


def difference(one, other):
    """Largest ``||a - b|| / ||b||`` of the fields of two states, such as all models; a NaN is one in both."""
    one, other = load_file(one), load_file(other)
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in other.items()}
    fields = {name.partition("/")[0] for name in other}

    def whole(tensors, field):
        own = [t.double().flatten() for n, t in tensors.items() if n.partition("/")[0] == field]
        return torch.cat(own).nan_to_num(nan=-7.0)

    def far(field):
        a, b = whole(one, field), whole(other, field)
        distance = 0.0 if torch.equal(a, b) else float((a - b).norm() / b.norm())
        return distance / 100 if field in OF_PAIRS else distance

    return max(map(far, fields))


def failures(folder):
    return [json.loads((folder / "two_ranks" / f"failures-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("method", mf.algorithms.names())
def test_two_processes_end_where_one_does(worked, method):
    alone = worked / "one_process" / f"{method}-0"
    for rank in (0, 1):
        shared = worked / "two_ranks" / f"{method}-{rank}"
        assert difference(shared.with_suffix(".safetensors"), alone.with_suffix(".safetensors")) <= 1e-6
        history, expected = (json.loads(p.with_suffix(".json").read_text()) for p in (shared, alone))
        assert [line.pop("train_loss") for line in history] == pytest.approx(
            [line.pop("train_loss") for line in expected], rel=1e-6
        )
        assert [line["bytes_up"] for line in history] == [line["bytes_up"] for line in expected]
        assert [line["bytes_down"] for line in history] == [line["bytes_down"] for line in expected]
        assert [line["accuracy"] for line in history] == [line["accuracy"] for line in expected]


@pytest.mark.parametrize("method", ["m3fed", "mfcpl"])
def test_four_processes_end_where_one_does(worked, method):
    for rank in range(4):
        shared = worked / "four_ranks" / f"{method}-{rank}.safetensors"
        assert difference(shared, worked / "one_process" / f"{method}-0.safetensors") <= 1e-6


@pytest.mark.parametrize("path", ["threads", "stacks"])
def test_threads_and_stacks_inside_a_process(worked, path):
    alone, shared = (worked / work / f"{path}-0.safetensors" for work in ("one_process", "two_ranks"))
    assert difference(shared, alone) <= 1e-6


@pytest.mark.parametrize("method", ["local", "per-fedavg", "fedmsplit"])
def test_personal_state_on_disk_ends_where_it_does_in_memory(worked, method):
    alone = worked / "one_process" / f"{method}-0.safetensors"
    for rank in (0, 1):
        shared = worked / "two_ranks" / f"{method}-on-disk-{rank}.safetensors"
        assert difference(shared, alone) <= 1e-6


def test_all_processes_have_the_same_bits(worked):
    for file in (worked / "two_ranks").glob("*-0.safetensors"):
        assert difference(file, file.with_name(file.name.replace("-0.", "-1."))) == 0, file


def test_a_run_of_two_processes_goes_on_in_four(worked):
    for rank in range(4):
        shared = worked / "four_ranks" / f"goes-on-{rank}.safetensors"
        assert difference(shared, worked / "one_process" / "goes-on-0.safetensors") <= 1e-6
    lines = (worked / "two_ranks" / "goes-on" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4, 5]


def told_by_survivors(worked, work, whole):
    """What all ranks but the last, which was killed, said; the resumed run ends where a whole one does."""
    folder = worked / work
    *survived, killed = json.loads((folder / "ended.json").read_text())
    assert not any(survived)
    assert killed == -signal.SIGKILL
    every = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(len(survived))]
    last = len(survived)
    for told in every:
        assert told.startswith(f"RankError: rank {last} of {last + 1} died, or no longer answered; ")
        assert told.endswith(f"`mmfl-fast run mine.yaml --out {folder / 'run'} --resume`")
    assert difference(whole, worked / "one_process" / "whole-0.safetensors") <= 1e-6
    return every


def test_a_dead_process_stops_the_others_and_the_run_can_go_on(worked):
    resumed = worked / "one_process" / "resumed-0.safetensors"
    first, second = told_by_survivors(worked, "dying_ranks", resumed)
    # The last checkpoint of its own was of round 2.
    assert "has the run up to round 3" in first
    assert "go on from the newest checkpoint" in second


def test_a_process_that_dies_after_rows_were_written_over_leaves_the_checkpoint_before(worked):
    for rank in range(4):
        resumed = worked / "four_ranks" / f"resumed-{rank}.safetensors"
        (told,) = told_by_survivors(worked, "dying_writers", resumed)
        assert "go on from the newest checkpoint" in told
    metrics = (worked / "dying_writers" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in metrics] == [1, 2, 3, 4, 5, 6]


def test_a_process_that_hangs_is_given_up_on(worked):
    told = json.loads((worked / "hanging_ranks" / "told-0.json").read_text())
    assert told == "RankError: rank 1 of 2 died, or no longer answered"
    assert json.loads((worked / "hanging_ranks" / "ended.json").read_text()) == [0, -signal.SIGKILL]


@pytest.mark.parametrize(("given", "seconds"), [("", 1800), ("0.5", 30)])
def test_patience_is_a_number_of_minutes(monkeypatch, given, seconds):
    monkeypatch.setenv("MMFL_PATIENCE", given)
    assert ranks.patience().total_seconds() == seconds


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf"])
def test_patience_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("MMFL_PATIENCE", given)
    with pytest.raises(
        ValueError, match=f"MMFL_PATIENCE must be a positive number of minutes; got '{given}'"
    ):
        ranks.patience()


def test_processes_that_were_not_started_alike_are_refused(worked):
    for found in failures(worked):
        assert "started alike: momentum is 0.1 in rank 1, 0.0 in rank 0" in found["config"]
        assert "started alike: seed is 1 in rank 1, 0 in rank 0" in found["seed"]


def test_a_failure_in_one_process_is_told_in_all(worked):
    first, second = failures(worked)
    assert first["error"] == "RankError: rank 1 of 2 failed with MemoryError: no room"
    assert second["error"] == "MemoryError: no room"
    assert first["disk"] == "OSError: [Errno 28] No space left on device"
    assert "rank 0 of 2 failed with OSError: [Errno 28] No space left" in second["disk"]
    assert first["out"].startswith("RunDirectoryError:")
    assert "rank 0 of 2 failed with RunDirectoryError:" in second["out"]


def test_divergence_in_one_process_is_told_in_all(worked):
    first, second = failures(worked)
    assert first["nan"].startswith("DivergedError: client 'both/")
    assert "after round 2" in first["nan"]
    assert first["nan"] == second["nan"]


def test_a_process_that_is_asked_to_end_tells_the_others(worked):
    first, second = failures(worked)
    assert "rank 1 of 2 was asked to end (SIGTERM); " in first["stopped"]
    assert "has the run up to round 1" in first["stopped"]
    assert "rank 1 of 2 was asked to end (SIGTERM); " in second["stopped"]


def test_more_processes_than_clients_are_refused(worked):
    for found in failures(worked):
        assert found["crowd"] == "ValueError: 2 processes for 1 clients in a round: start 1 at most"
    told = {json.loads((worked / "four_ranks" / f"crowd-{rank}.json").read_text()) for rank in range(4)}
    assert told == {"ValueError: 4 processes for 3 clients in a round: start 3 at most"}


def test_processes_that_compute_another_state_take_that_of_the_first(worked):
    alone = worked / "one_process" / "drift-0.safetensors"
    for rank in (0, 1):
        assert difference(worked / "two_ranks" / f"drift-{rank}.safetensors", alone) <= 1e-6


def test_a_killed_process_under_torchrun(toy_federation, tmp_path, monkeypatch, capsys):
    task = toy_federation.tasks[0]
    arrays = {f"modality:{name}": x.numpy() for name, x in task.inputs.items()}
    np.savez(tmp_path / "mine.npz", labels=task.labels.numpy(), clients=task.owner.numpy(), **arrays)
    (tmp_path / "mine.yaml").write_text(
        "algorithm: m3fed\nrounds: 100000\ndata: {npz: mine.npz}\n"
        "config: {width: 8, operator_rows: 4, layers: 1, local_epochs: 1, evaluate_every: 100000}\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    metrics = tmp_path / "out" / "metrics.jsonl"
    with subprocess.Popen(
        [*torchrun, "-m", "mmfl_fast", "run", "mine.yaml", "--out", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
            time.sleep(0.1)
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        out, told = process.communicate(timeout=60)
    assert process.returncode
    assert out == ""
    assert told.count("error: rank 1 of 2 died, or no longer answered; out has the run up to round") == 1
    command = told.split("any number of processes: `")[1].split("`")[0]
    assert command == "torchrun --nproc-per-node 2 -m mmfl_fast run mine.yaml --out out --resume"

    # One process goes on where two stopped.
    done = len(metrics.read_text().splitlines())
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    further = [*words[words.index("run") :], "--set", f"rounds={done + 1}"]
    monkeypatch.setattr(sys, "argv", ["mmfl-fast", *further])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["rounds"] == done + 1


def process_of_rank(rank, launcher):
    """The process number of a rank that torchrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise LookupError(f"no rank {rank} among the children of {launcher}")


def test_a_process_alone_exchanges_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with ranks.joined() as alone:
        assert (alone.rank, alone.world, alone.first) == (0, 1, True)
        assert alone.exchange(lambda: 3) == [3]
        assert alone.everywhere(lambda: "here") == "here"
        assert alone.from_first(lambda: "here") == "here"
        assert alone.own_gpu(torch.device("cuda")) == torch.device("cuda")
    assert ranks.is_first()
    assert not ranks.launched()
    assert ranks.launcher() == ["mmfl-fast"]


def test_who_has_lost_another_is_not_ended_before_it_can_say_so():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ranks.RankError, match="gone"), ranks.Ranks().ending_in_order():
        raise ranks.RankError("gone")
    signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_of_several_machines(monkeypatch):
    place = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**place, "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not ranks.is_first()
    assert ranks.launcher() == ["torchrun", "--nnodes", "2", "--nproc-per-node", "4", "-m", "mmfl_fast"]


def test_a_comparison_is_not_for_torchrun(monkeypatch, capsys):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["mmfl-fast", "compare", "fedavg", "--preset", "demo"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "start it without torchrun" in " ".join(capsys.readouterr().err.split())
