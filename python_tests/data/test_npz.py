from __future__ import annotations

import re

import numpy as np
import pytest

from mmfl_fast.data import load_npz

ROWS = 20
ARRAYS = {
    "modality:acc": np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3) + 1,
    "modality:gyro": np.ones((ROWS, 2, 2)),
    "labels": np.arange(ROWS) % 4,
    "clients": np.array([f"c{i % 3}" for i in range(ROWS)]),
    "split": np.array(["train", "test"] * (ROWS // 2)),
}


def save(path, **changes):
    arrays = {**ARRAYS, **changes}
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def test_reads_all_arrays(tmp_path):
    present = np.arange(ROWS) % 5 > 0
    path = save(tmp_path / "wrist.npz", **{"present:gyro": present})
    fed = load_npz(path)
    (task,) = fed.tasks
    assert fed.name == task.name == "wrist"
    assert task.modalities == ("acc", "gyro")
    assert task.inputs["acc"].tolist() == ARRAYS["modality:acc"].tolist()
    assert task.present[:, 0].all()
    assert task.present[:, 1].tolist() == present.tolist()
    assert task.client_names == ("c0", "c1", "c2")
    assert task.is_train.tolist() == [True, False] * (ROWS // 2)


def test_split_is_optional_and_options_pass_through(tmp_path):
    path = save(tmp_path / "a.npz", split=None)
    tasks = [load_npz(path, "named", num_classes=9, seed=seed).tasks[0] for seed in (0, 0, 1)]
    assert tasks[0].name == "named"
    assert tasks[0].num_classes == 9
    assert tasks[0].is_train.tolist() == tasks[1].is_train.tolist() != tasks[2].is_train.tolist()


def test_compressed_file_and_string_path(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    assert load_npz(str(tmp_path / "a.npz")).tasks[0].num_samples == ROWS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "lacks labels; it has"),
        ({"clients": None, "modality:acc": None, "modality:gyro": None}, "lacks clients, modality:<name>;"),
        ({"lables": np.arange(ROWS)}, "unknown key 'lables'; did you mean 'labels'"),
        ({"clients": np.array(["a"] * ROWS, dtype=object)}, "'clients' is an array of Python objects"),
        ({"labels": np.arange(ROWS - 1)}, "clients has 20 rows, but labels has 19"),
        ({"present:acce": np.ones(ROWS, bool)}, "unknown modality 'acce'; did you mean 'acc'"),
    ],
)
def test_wrong_contents_are_named_with_the_file(tmp_path, changes, message):
    path = save(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)


def test_wrong_type_stays_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="labels must hold integers"):
        load_npz(save(tmp_path / "bad.npz", labels=np.full(ROWS, "x")))


def test_a_path_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"path must be that of a \.npz file or folder, got 3"):
        load_npz(3)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("nothing.npz")):
        load_npz(tmp_path / "nothing.npz")


def test_truncated_file(tmp_path):
    path = save(tmp_path / "cut.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=re.escape("is not a .npz file, or it is cut short")):
        load_npz(path)


def test_a_changed_byte(tmp_path):
    path = save(tmp_path / "changed.npz")
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged"):
        load_npz(path)


def test_a_changed_first_byte(tmp_path):
    path = save(tmp_path / "changed.npz")
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match="is damaged: it does not begin as an archive"):
        load_npz(path)


def test_a_single_array_is_not_an_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(ValueError, match=re.escape("is not a .npz file")):
        load_npz(tmp_path / "a.npy")
