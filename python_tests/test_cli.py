import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

import mmfl_fast
from mmfl_fast.benches import mix, ops
from mmfl_fast.cli import main
from mmfl_fast.experiments.presets import load_experiment
from mmfl_fast.federation import forecast
from mmfl_fast.federation.machine_limits import Room

TINY = [
    f"--set={s}" for s in ("width=8", "operator_rows=4", "layers=1", "local_epochs=1", "checkpoint_every=1")
]


def mmfl(*arguments, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "mmfl_fast", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """Runs a command line in this process, in an empty folder; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmfl-fast", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, " ".join(printed.err.split())

    return run


@pytest.fixture
def two_modalities(tmp_path):
    """A YAML file on 40 clients with the modalities acc and gyro."""
    drawn = np.random.default_rng(0).normal(size=(400, 3))
    arrays = {"modality:acc": drawn, "modality:gyro": -drawn}
    np.savez(tmp_path / "mine.npz", labels=np.arange(400) % 3, clients=np.repeat(np.arange(40), 10), **arrays)
    (tmp_path / "mine.yaml").write_text("data: {npz: mine.npz}\nmissing: {rate: 1}\n")
    return "mine.yaml"


def test_run_prints_scores_and_writes_a_report(tmp_path):
    done = mmfl("run", "demo", "--set=rounds=2", *TINY, "--out=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("digits", "cancer", "wine", "iris", "m3fed"):
        assert name in done.stdout
    assert {"config.yaml", "metrics.jsonl", "result.json", "report.html", "checkpoints"} <= {
        p.name for p in (tmp_path / "mine").iterdir()
    }
    again = mmfl("run", "demo", "--set=rounds=2", *TINY, "--out=mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr


def test_without_out_every_run_has_a_folder_of_its_own_and_resume_takes_the_newest(tmp_path):
    assert mmfl("run", "demo", "--set=rounds=1", *TINY, cwd=tmp_path).returncode == 0
    (folder,) = (tmp_path / "runs" / "demo").iterdir()
    done = mmfl("run", "demo", "--set=rounds=2", *TINY, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [folder] == list((tmp_path / "runs" / "demo").iterdir())
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    arguments = ["run", "demo", "--set=rounds=40", *TINY]
    assert mmfl(*arguments, "--out=whole", cwd=tmp_path).returncode == 0

    process = subprocess.Popen(
        [sys.executable, "-m", "mmfl_fast", *arguments, "--out=killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()

    done = mmfl(*arguments, "--out=killed", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [(tmp_path / run / "result.json").read_text() for run in ("whole", "killed")]
    assert results[0] == results[1]
    states = [
        load_file(tmp_path / r / "checkpoints" / "round-000040" / "state.safetensors")
        for r in ("whole", "killed")
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.numpy().tobytes() == states[1][name].numpy().tobytes(), name


def test_compare_prints_tables_and_can_be_finished_later(tmp_path):
    arguments = [
        "compare",
        "local",
        "m3fed,lambda=0.3",
        "--preset=demo",
        "--seeds=2",
        "--alpha=1,0.4",
        "--set=rounds=2",
        *TINY,
        "--out=both",
    ]
    done = mmfl(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"local.*\d+\.\d+ ± \d+\.\d+", done.stdout)) == 2
    assert "data.alpha=0.4" in done.stdout
    assert re.search(r"8 of 8 runs, 16 of 16 rounds \(100 %\)", done.stderr)
    out = tmp_path / "both"
    written = {"comparison.yaml", "report.html", "tables.md", "tables.tex", "scores.csv", "summary.csv"}
    assert written <= {p.name for p in out.iterdir()}
    assert (out / "data.alpha=0.4" / "report.html").exists()
    refused = mmfl(*arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    (out / "report.html").unlink()
    assert mmfl("report", "both", cwd=tmp_path).returncode == 0
    assert "local" in (out / "report.html").read_text()


def test_a_killed_comparison_over_missing_rates_resumes_to_the_same_scores(
    tmp_path, two_modalities, monkeypatch
):
    options = ["--seeds=1", "--jobs=1", "--set=rounds=40", *TINY, "--missing", "0", "0.8"]
    arguments = ["compare", "local", "m3fed", f"--preset={two_modalities}", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "mmfl_fast", *arguments, "--out=killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "killed" / "missing.rate=0.8" / "local" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, "the comparison ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = tmp_path / "killed" / "missing.rate=0" / "m3fed" / "seed-0" / "result.json"
    before = finished.read_text()
    assert not (metrics.parent / "result.json").exists()

    done = mmfl(*arguments, "--out=killed", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert finished.read_text() == before
    assert re.search(r"method +0 +0\.8 *\n.*\n local +\d+\.\d\d +\d+\.\d\d", done.stdout)
    assert {"missing.csv", "missing.md", "missing.tex"} <= {p.name for p in (tmp_path / "killed").iterdir()}
    monkeypatch.chdir(tmp_path)
    changes = ["rounds=40", *(option.removeprefix("--set=") for option in TINY)]
    for rate, method in (("0", "local"), ("0.8", "local"), ("0.8", "m3fed")):
        alone = load_experiment(two_modalities, [*changes, f"missing.rate={rate}"])
        options = alone.options_of(method)
        whole = mmfl_fast.run(alone.federation(0), method, rounds=40, config=options, progress=False)
        place = tmp_path / "killed" / f"missing.rate={rate}" / method / "seed-0" / "result.json"
        assert json.loads(place.read_text())["per_client"] == whole.final["per_client"].tolist()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "dmo"], "unknown preset 'dmo'; did you mean 'demo'"),
        (["run", "demo", "--set=lamda=1"], "unknown config key 'lamda'; did you mean 'lambda'"),
        (["run", "demo", "--set=algorithm=m3"], "unknown algorithm 'm3'"),
        (["run", "absent.yaml"], "absent.yaml"),
        (["run", "demo", "--resume"], "there is no run under"),
        (["run", "demo", "--metric=macro-f1"], "unknown metric 'macro-f1'; did you mean 'macro_f1'"),
        (["data", "check", "mnst"], "did you mean 'mnist'"),
        (["data", "missing", "dmo"], "unknown data set or preset 'dmo'; did you mean 'demo'"),
        (["data", "missing", "demo", "--rate=2"], "rate must lie in [0, 1], got 2"),
        (["compare", "local", "--preset=demo", "--out=/dev/null"], "/dev/null is not a folder"),
        (["report", "nowhere[bold]"], "nowhere[bold] is not a folder"),
        (["report", "."], "comparison.yaml is missing"),
        (["compare", "m3fd", "--preset=demo"], "unknown algorithm 'm3fd'; did you mean 'm3fed'"),
        (["compare", "m3fed,lamda=1", "--preset=demo"], "unknown config key 'lamda'; did you mean 'lambda'"),
        (["compare", "m3fed", "--preset=demo", "--over=lamda=0,1"], "unknown config key 'lamda'"),
        (["compare", "m3fed", "--preset=demo", "--missing", "0.2", "2"], "rate must lie in [0, 1], got 2"),
        (["compare", "m3fed", "--preset=demo", "--missing", "0.2", "0.2"], "each value may come once"),
        (["compare", "m3fed", "--preset=demo", "--metric=f1"], "unknown metric 'f1'"),
        (["compare", "m3fed", "--preset=demo", "--alpha=much"], "alpha must be a number, got 'much'"),
        (["compare", "m3fed", "--preset=demo", "--data=demo,mnst"], "did you mean 'mnist'"),
        (
            ["compare", "local", "m3fed,local_epochs=1", "--preset=demo"],
            "in a round: local takes",
        ),
        (["bench", "ops", "--only=K=17"], "--only 'K=17' is in the name of no case; the cases are"),
        (["bench", "ops", "--only=K=17"], "weighted_mean K=64 P=1e+06"),
        (["bench", "ops", "--json=absent/ops.json"], "absent/ops.json"),
        (["bench", "modalities", "m3fd"], "unknown algorithm 'm3fd'"),
        (["bench", "modalities", "local", "--counts=2,0"], "--counts takes integers >= 1 with ',' between"),
        (["bench", "modalities", "local", "--shape=128x"], "--shape takes integers >= 1 with 'x' between"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_two(typed, arguments, told):
    code, _, errors = typed(*arguments)
    assert code == 2
    assert errors.startswith("error: ")
    assert told in errors


def test_rows_of_a_file_are_no_data_set(typed, tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {npz: mine.npz}\n")
    code, _, errors = typed("compare", "local", "--preset=mine.yaml", "--data=demo,mnist")
    assert (code, errors) == (
        2,
        "error: --data demo,mnist: mine.yaml reads mine.npz, and no data set by name",
    )
    code, _, errors = typed("run", "mine.yaml", "--set=data.name=mnist")
    assert code == 2
    assert "'mnist' is a data set, but the rows come from npz 'mine.npz'" in errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["run", "demo"], "interrupted; continue with --resume"), (["bench", "ops"], "interrupted")],
)
def test_ctrl_c_tells_how_to_go_on(typed, monkeypatch, arguments, told):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmfl_fast.cli.run", interrupt)
    monkeypatch.setattr(ops, "run", interrupt)
    code, _, errors = typed(*arguments)
    assert code == 130
    assert errors == told


def test_missing_data_tell_the_file_and_the_command(typed, monkeypatch, tmp_path):
    monkeypatch.setenv("MMFL_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("MMFL_CACHE", str(tmp_path / "cache"))
    code, _, errors = typed("run", "m3fed-five")
    assert code == 2
    assert "train-images-idx3-ubyte.gz" in errors
    assert "mmfl-fast data fetch mnist" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["run"], ["compare"], ["report"], ["data"], ["data", "check"], ["data", "fetch"]),
        *(["data", "missing"], ["bench", "modalities"]),
        *(["bench"], ["bench", "ops"], ["doctor"]),
    ],
)
def test_every_command_explains_itself(typed, arguments):
    code, output, _ = typed(*arguments, "--help")
    assert code == 0
    assert "Usage" in output


def test_run_tells_the_presets(typed):
    _, output, _ = typed("run", "--help")
    for name in ("demo", "m3fed-five", "m3fed-five-cpu"):
        assert name in output


def test_doctor_tells_what_is_here(typed):
    code, output, _ = typed("doctor")
    assert code == 0
    for word in ("torch", "backend native", "backend triton", "CUDA part"):
        assert word in output


def test_a_dry_run_tells_what_it_takes_and_writes_nothing(typed, tmp_path, two_modalities):
    code, out, _ = typed("run", two_modalities, "--dry-run", "--set=missing=null", *TINY)
    assert code == 0
    assert re.search(r"clients\s+40 registered, 40 in a round, 40 tested", out)
    assert re.search(r"steps of pass 'global'\s+native", out)
    assert "time of the run" in out
    code, out, _ = typed(
        *("compare", "fedavg", "m3fed", f"--preset={two_modalities}", "--seeds=2", "--dry-run", *TINY)
    )
    assert code == 0
    assert "4 runs" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.npz", "mine.yaml"]


def test_a_dry_run_refuses_what_cannot_fit(typed, monkeypatch, two_modalities):
    monkeypatch.setattr(forecast, "free_memory", lambda _: Room(150_000, "the container"))
    code, out, told = typed("run", two_modalities, "--dry-run", *TINY)
    assert code == 2
    assert "models in a round" in out
    assert "m3fed does not fit: memory: the run needs" in told
    assert "--set client_state=disk" in told
    monkeypatch.setattr(forecast, "free_memory", lambda _: Room(400_000, "the container"))
    code, _, told = typed("compare", "local", f"--preset={two_modalities}", "--jobs=3", "--dry-run", *TINY)
    assert code == 2
    assert re.search(r"3 runs at a time need .* it fits with --jobs 2", told)


def test_data_list_names_the_sets(typed):
    code, output, _ = typed("data", "list")
    assert code == 0
    for name in ("demo", "mnist", "fsdd", "hapt", "meld", "sign", "m3fed-five"):
        assert name in output


def test_data_missing_counts_and_draws(typed, tmp_path, two_modalities):
    code, output, _ = typed("data", "missing", two_modalities, "--out=mask.png")
    assert code == 0
    counts = [int(n) for n in re.findall(r"mine +(?:acc|gyro) +(\d+) +\d+\.\d % +\d+ *\n", output)]
    assert len(counts) == 2
    assert sum(counts) == 40
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    code, output, _ = typed(
        "data", "missing", two_modalities, "--rate={acc: 0.5}", "--set=missing.rule=independent"
    )
    assert re.search(r"acc \+ gyro +\d\d +\d\d\.\d %", output)
    assert re.search(r"mine +gyro +100\.0 % +100\.0 %", output)
    assert "picture: missing.png" in output
    (tmp_path / "missing.png").unlink()
    code, output, _ = typed("data", "missing", two_modalities, "--rate=0")
    assert "nothing is missing: no picture" in output
    assert not (tmp_path / "missing.png").exists()


def test_data_missing_takes_a_data_set_by_name(typed):
    _, output, _ = typed("data", "missing", "demo", "--set=data.clients={digits: 5}")
    assert re.search(r"digits +image +5 +100\.0 %", output)


def test_metrics_that_are_asked_for_are_printed(typed):
    options = ["--set=rounds=1", *TINY, "--metric=uar", "--metric=bytes_up"]
    code, output, _ = typed("run", "demo", *options, "--out=run")
    assert code == 0
    assert "Unweighted average recall in %, one seed" in output
    assert "Sent up by a client in a round in kB, one seed" in output
    assert "Accuracy" not in output


def test_bench_prints_targets_and_writes_them(typed, tmp_path):
    code, output, _ = typed("bench", "ops", "--only=Weighted_Mean K=4", "--seconds=0", "--json=ops.json")
    assert code == 0
    written = json.loads((tmp_path / "ops.json").read_text())
    assert written["machine"]["threads"] > 0
    assert written["skipped"] == []
    (line,) = written["cases"]
    assert line["case"] == "weighted_mean K=4 P=8 (overhead)"
    assert line["error"] <= line["tolerance"]
    assert 0 < line["ours"]["p20"] <= line["ours"]["p50"] <= line["ours"]["p80"]
    assert set(line["baselines"]) == {"w @ X", "reference"}
    (target,) = line["targets"]
    assert target["measured"] == pytest.approx(1e3 * line["ours"]["p50"])
    assert target["met"] == (target["measured"] <= 8)
    assert "weighted_mean K=4" in output
    assert "≤ 8" in output
    assert f"{int(target['met'])} of 1 targets met" in output


def test_bench_of_modalities_prints_and_writes_the_cost(typed, tmp_path):
    method = "fedavg,width=8,operator_rows=4,layers=1"
    options = ["--counts=1,2", "--shape=4x3", "--rounds=1", "--json=cost.json"]
    code, output, _ = typed("bench", "modalities", method, *options)
    assert code == 0
    assert "64 training rows of 4x3 noise" in output
    first, second = json.loads((tmp_path / "cost.json").read_text())
    assert (first["method"], first["modalities"], second["modalities"]) == (method, 1, 2)
    assert second["bytes_up"] > first["bytes_up"]
    assert f"{1e-3 * second['bytes_up']:.1f}" in output


def test_bench_prints_no_time_for_a_wrong_result(typed, monkeypatch, tmp_path):
    right = mix.ops.weighted_mean
    monkeypatch.setattr(mix.ops, "weighted_mean", lambda *rows_and_weights: right(*rows_and_weights) * 1.001)
    code, output, _ = typed("bench", "ops", "--only=mean K=4", "--seconds=0", "--json=ops.json")
    assert code == 1
    assert "WRONG RESULT" in output
    assert "w @ X" not in output
    (line,) = json.loads((tmp_path / "ops.json").read_text())["cases"]
    assert not {"ours", "baselines", "quantities", "targets"} & set(line)


def test_a_missed_target_is_printed_and_no_error(typed, monkeypatch, set_threads):
    hopeless = mix._tiny_mean(mix.at_most(1e-9, mix.TIME))
    monkeypatch.setattr(mix, "CASES", (hopeless,))
    code, output, _ = typed("bench", "ops", "--only=mean", "--seconds=0", "--threads=1")
    assert code == 0
    assert "MISSED" in output
    assert "0 of 1 targets met" in output


def test_bench_does_not_measure_when_it_cannot_write(typed, monkeypatch):
    monkeypatch.setattr(ops, "measure", lambda *_: pytest.fail("measured"))
    assert typed("bench", "ops", "--json=absent/ops.json")[0] == 2


def test_bench_on_a_machine_without_a_gpu(typed, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, errors = typed("bench", "ops", "--device=cuda")
    assert code == 2
    assert errors == "error: --device cuda: torch sees no GPU"


def test_the_other_commands_do_not_import_the_benches(tmp_path):
    code = "import sys, mmfl_fast.cli; assert 'mmfl_fast.benches.ops' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_benches_run_without_the_engine(tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['bench', '--only=gram K=4', '--seconds=0']\n"
        "try: runpy.run_module('mmfl_fast.benches', run_name='__main__')\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "assert not {'mmfl_fast.federation', 'mmfl_fast.experiments', 'sklearn'} & set(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "gram K=4 P=8" in told.stdout
