import errno
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmfl_fast.federation import CheckpointError, ParameterTable, State, checkpoints
from mmfl_fast.federation.checkpoints import read_checkpoint, state_tensors, write_checkpoint


@dataclass(frozen=True)
class Extended(State):
    slot: Tensor


def state(value):
    table = ParameterTable({0: {"a": torch.full((2,), value)}, 3: {"a": torch.full((3,), value)}})
    return Extended({"f.0": torch.full((2, 2), value)}, table, torch.tensor([1, 2]))


def test_a_state_comes_back_bit_for_bit(tmp_path):
    write_checkpoint(tmp_path, 4, state(1 / 3), {"metrics_bytes": 17})
    restored, meta = read_checkpoint(tmp_path, state(0.0))
    assert meta == {"rounds_done": 4, "metrics_bytes": 17}
    expected, actual = state_tensors(state(1 / 3)), state_tensors(restored)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[n], actual[n]) and expected[n].dtype == actual[n].dtype for n in expected)


def test_the_last_two_are_kept(tmp_path):
    for rounds_done in (1, 2, 3, 10):
        write_checkpoint(tmp_path, rounds_done, state(float(rounds_done)), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-000003", "round-000010"]
    assert read_checkpoint(tmp_path, state(0.0))[1]["rounds_done"] == 10


def test_none_before_the_first(tmp_path):
    assert read_checkpoint(tmp_path / "absent", state(0.0)) is None


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, state(1.0), {})

    def full(tensors, path):
        path.write_bytes(b"torn")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(CheckpointError, match=r"round-000002 could not be written.*No space.*round-000001"):
        write_checkpoint(tmp_path, 2, state(2.0), {})
    assert [p.name for p in tmp_path.iterdir()] == ["round-000001"]
    assert read_checkpoint(tmp_path, state(0.0))[0].shared["f.0"][0, 0] == 1.0


def test_a_death_while_writing_leaves_nothing_that_counts(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, state(1.0), {})

    def killed(tensors, path):
        path.write_bytes(b"torn")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, 2, state(2.0), {})
    assert read_checkpoint(tmp_path, state(0.0))[1]["rounds_done"] == 1
    write_checkpoint(tmp_path, 2, state(2.0), {})
    assert read_checkpoint(tmp_path, state(0.0))[1]["rounds_done"] == 2


@pytest.mark.parametrize("name", ["state.safetensors", "meta.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    write_checkpoint(tmp_path, 1, state(1.0), {})
    folder = write_checkpoint(tmp_path, 2, state(2.0), {})
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"round-000002 cannot be read.*delete it.*round-000001"):
        read_checkpoint(tmp_path, state(0.0))


def test_a_changed_number_is_noticed(tmp_path):
    file = write_checkpoint(tmp_path, 1, state(1.0), {}) / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"round-000001 cannot be read .*not what was written"):
        read_checkpoint(tmp_path, state(0.0))


@pytest.mark.parametrize("meta", ["{}", "[]", "null", '{"rounds_done": 7}', '{"rounds_done": "1"}'])
def test_meta_data_of_something_else_are_named(tmp_path, meta):
    (write_checkpoint(tmp_path, 1, state(1.0), {}) / "meta.json").write_text(meta)
    with pytest.raises(CheckpointError, match=r"round-000001 cannot be read .*other rounds"):
        read_checkpoint(tmp_path, state(0.0))


def test_a_checkpoint_of_before_checksums_is_read(tmp_path):
    (write_checkpoint(tmp_path, 1, state(1.0), {}) / "meta.json").write_text('{"rounds_done": 1}')
    assert read_checkpoint(tmp_path, state(0.0))[1] == {"rounds_done": 1}


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path):
    newest = write_checkpoint(tmp_path, 1_000_000, state(1.0), {})
    write_checkpoint(tmp_path, 999_999, state(2.0), {}).rename(tmp_path / "round-999999.bak")
    write_checkpoint(tmp_path, 999_999, state(2.0), {})
    assert read_checkpoint(tmp_path, state(0.0))[1]["rounds_done"] == 1_000_000
    assert newest.exists()


def test_a_state_of_something_else_is_refused():
    @dataclass(frozen=True)
    class Wrong(State):
        number: int

    with pytest.raises(TypeError, match=r"Wrong\.number.*int"):
        state_tensors(Wrong({}, ParameterTable({}), 3))
