import json

import pytest

import mmfl_fast as mf
from mmfl_fast.federation import CheckpointError, RunDirectoryError
from mmfl_fast.federation.run_directory import RunDirectory, write_atomically

SMALL = {"width": 8, "operator_rows": 4, "layers": 1, "batch_size": 8, "local_epochs": 1}


@pytest.fixture
def finished(toy_federation, tmp_path):
    mf.run(toy_federation, "fedavg", rounds=2, out=tmp_path, config=SMALL)
    return tmp_path


def resumed(federation, out, rounds=3, **changes):
    return mf.run(federation, "fedavg", rounds=rounds, out=out, config={**SMALL, **changes}, resume=True)


def test_one_process_at_a_time(tmp_path):
    directory = RunDirectory(tmp_path, {}, resume=False)
    with pytest.raises(RunDirectoryError, match="another process is working on"):
        RunDirectory(tmp_path, {}, resume=True)
    directory.close()
    RunDirectory(tmp_path, {}, resume=True).close()


def test_a_file_is_no_folder(toy_federation, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(RunDirectoryError, match="out is not a folder"):
        mf.run(toy_federation, "fedavg", rounds=1, out=tmp_path / "out", config=SMALL)


def test_options_of_several_values_are_those_of_the_run_before(tmp_path):
    config = {"config": {"support": ("image", "sign")}}
    directory = RunDirectory(tmp_path, config, resume=False)
    directory.describe([])
    directory.close()
    RunDirectory(tmp_path, config, resume=True).close()
    with pytest.raises(
        RunDirectoryError, match=r"\(config\.support: \['image', 'sign'\] there, \['image'\] now\)"
    ):
        RunDirectory(tmp_path, {"config": {"support": ("image",)}}, resume=True)


def test_what_is_refused_changes_no_file(toy_federation, finished):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="2 rounds behind it; got 1"):
        resumed(toy_federation, finished, rounds=1)
    with pytest.raises(RunDirectoryError, match=r"\(config\.layers: 1 there, 2 now\)"):
        resumed(toy_federation, finished, layers=2)
    with pytest.raises(RunDirectoryError, match="data_digest"):
        resumed(mf.data.with_missing(toy_federation, 1.0), finished)
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_checkpoints_without_a_config_are_no_empty_folder(toy_federation, finished):
    (finished / "config.yaml").unlink()
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        mf.run(toy_federation, "fedavg", rounds=3, out=finished, config=SMALL)
    with pytest.raises(RunDirectoryError, match=r"config\.yaml cannot be read"):
        resumed(toy_federation, finished)


def test_a_damaged_config_is_named(toy_federation, finished):
    (finished / "config.yaml").write_text("a: [")
    with pytest.raises(RunDirectoryError, match=r"config\.yaml cannot be read"):
        resumed(toy_federation, finished)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "metrics.jsonl cannot be read"),
        (lambda path: path.write_text("{"), "metrics.jsonl cannot be read"),
        (lambda path: path.write_text("[1]\n[2]"), "metrics.jsonl cannot be read"),
        (lambda path: path.write_text(""), "does not hold rounds 1 to 2"),
    ],
)
def test_metrics_that_are_gone_stop_the_resume(toy_federation, finished, damage, told):
    damage(finished / "metrics.jsonl")
    with pytest.raises(CheckpointError, match=told):
        resumed(toy_federation, finished)


def test_lines_behind_the_checkpoint_are_computed_again(toy_federation, finished):
    metrics = finished / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"round": 3, "half a li')
    resumed(toy_federation, finished)
    assert [json.loads(line)["round"] for line in metrics.read_text().splitlines()] == [1, 2, 3]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*config\.yaml'"):
        write_atomically(tmp_path / "config.yaml", "a: 1")
