import errno
import os
import random

import pytest
import torch

from mmfl_fast.federation import CheckpointError, ParameterTable, State
from mmfl_fast.federation.checkpoints import read_checkpoint, write_checkpoint
from mmfl_fast.federation.disk_table import DiskTable

START = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "flag": torch.tensor([True, False]),
}


def start():
    other = {"a": torch.zeros(5, dtype=torch.float64)}
    return ParameterTable({**dict.fromkeys((0, 2, 5), START), 7: other})


def drawn(row, seed):
    torch.manual_seed(100 * row + seed)
    return {
        n: torch.rand(t.shape) > 0.5 if t.dtype == torch.bool else torch.randn(t.shape).to(t.dtype)
        for n, t in start()[row].items()
    }


def equal(row, other):
    return row.keys() == other.keys() and all(
        torch.equal(t, other[n]) and t.dtype == other[n].dtype for n, t in row.items()
    )


def checkpoint(table, folder, number):
    write_checkpoint(folder / "checkpoints", number, State({}, table), {})


@pytest.mark.parametrize("on_disk", [True, False])
def test_it_reads_as_a_table_in_memory_does(tmp_path, on_disk):
    table, plain = DiskTable(start(), tmp_path / "personal" if on_disk else None), start()
    assert len(table) == 4
    assert list(table) == [0, 2, 5, 7]
    assert table.get(1) == table.get(-1) == table.get(100) == {}
    assert 5 in table
    assert 3 not in table
    for seed, rows in enumerate([(2, 7), (2,), (0, 7, 2)]):
        new = {row: drawn(row, seed) for row in rows}
        table, plain = table.replace(new), plain.replace(new)
        assert all(equal(table[row], plain[row]) for row in (0, 2, 5, 7))
    files = sorted(p.name for p in (tmp_path / "personal").iterdir()) if on_disk else []
    assert files == (["rows-0.bin", "rows-1.bin"] if on_disk else [])


def test_rows_that_share_tensors_are_held_once(tmp_path):
    many = DiskTable(ParameterTable(dict.fromkeys(range(500), START)), tmp_path)
    assert len(many._starts) == 1
    # Views made anew for each row may be handed the identity of one that is gone.
    stacked = ParameterTable({row: {"a": torch.full((3,), float(row))} for row in range(50)}).replace({})
    table = DiskTable(stacked, tmp_path)
    assert all(table[row]["a"].tolist() == [row] * 3 for row in range(50))


def test_nothing_is_written_before_a_row_is_replaced(tmp_path):
    table = DiskTable(start(), tmp_path / "personal")
    table[2], table.tensors()
    assert not (tmp_path / "personal").exists()


def test_an_older_version_cannot_be_read(tmp_path):
    older = DiskTable(start(), tmp_path)
    newer = older.replace({2: drawn(2, 0)})
    with pytest.raises(RuntimeError, match="replaced by a newer one"):
        older[2]
    assert equal(newer[2], drawn(2, 0))


def test_other_rows_and_shapes_are_refused_before_anything_is_written(tmp_path):
    table = DiskTable(start(), tmp_path)
    with pytest.raises(KeyError):
        table.replace({2: drawn(2, 0), 3: drawn(2, 0)})
    with pytest.raises(ValueError, match="row 7: expected"):
        table.replace({2: drawn(2, 0), 7: drawn(2, 0)})
    assert equal(table[2], START)


@pytest.mark.parametrize("seed", range(3))
def test_the_last_two_checkpoints_can_be_read_whatever_came_after(tmp_path, seed):
    draw = random.Random(seed)
    table = DiskTable(start(), tmp_path / "personal")
    plain, kept = start(), {}

    def same_as_kept(number):
        found, meta = read_checkpoint(tmp_path / "checkpoints", State({}, again()))
        assert meta["rounds_done"] == number
        assert all(equal(found.personal[row], kept[number][row]) for row in (0, 2, 5, 7))
        return found.personal

    def again():
        return DiskTable(start(), tmp_path / "personal")

    for number in range(1, 9):
        for step in range(draw.randrange(4)):
            new = {row: drawn(row, 10 * number + step) for row in (0, 2, 5, 7) if draw.random() < 0.6}
            table, plain = table.replace(new), plain.replace(new)
        checkpoint(table, tmp_path, number)
        kept[number] = plain
        if draw.random() < 0.3:
            # A new process, after one that had gone on for a while.
            table.replace({row: drawn(row, 999) for row in (0, 2, 5, 7)})
            table = same_as_kept(number)
    table.replace({row: drawn(row, 999) for row in (0, 2, 5, 7)})
    same_as_kept(8)
    for path in (tmp_path / "checkpoints" / "round-000008").iterdir():
        path.unlink()
    (tmp_path / "checkpoints" / "round-000008").rmdir()
    same_as_kept(7)


def test_a_checkpoint_holds_a_number_per_row_and_comes_after_the_rows(tmp_path, monkeypatch):
    table = DiskTable(start(), tmp_path / "personal").replace({2: drawn(2, 0)})
    assert {n: t.tolist() for n, t in table.tensors().items()} == {
        "slot": [0, 0, 1, 0, 0, 0, 0, 0],
        "before": [0] * 8,
    }
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file))[1])
    checkpoint(table, tmp_path, 1)
    assert synced[0] == (tmp_path / "personal" / "rows-0.bin").stat().st_ino


def test_files_that_are_gone_are_named(tmp_path):
    table = DiskTable(start(), tmp_path / "personal").replace({2: drawn(2, 0)})
    checkpoint(table, tmp_path, 1)
    (tmp_path / "personal" / "rows-0.bin").unlink()
    with pytest.raises(CheckpointError, match=r"round-000001 cannot be read.*rows-0\.bin"):
        read_checkpoint(tmp_path / "checkpoints", State({}, DiskTable(start(), tmp_path / "personal")))


def test_a_checkpoint_of_other_clients_is_refused(tmp_path):
    tensors = DiskTable(start(), tmp_path).tensors()
    with pytest.raises(ValueError, match="expected slots of 3 rows, got 8"):
        DiskTable(ParameterTable(dict.fromkeys(range(3), START)), tmp_path).with_tensors(tensors)


def test_a_full_disk_names_file_and_row(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    table = DiskTable(start(), tmp_path)
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match=r"No space left on device: personal state of row 2: .*rows-0\.bin"):
        table.replace({2: drawn(2, 0)})
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match=r"no bytes at \d+: personal state of row 7: .*rows-1\.bin"):
        DiskTable(start(), tmp_path).replace({7: drawn(7, 0)})


def test_a_disk_that_takes_less_than_is_given_is_asked_again(tmp_path, monkeypatch):
    write, calls = os.pwritev, 0

    def reluctant(file, buffers, place):
        nonlocal calls
        calls += 1
        return write(file, [buffers[0][:3]] if calls % 2 else buffers, place)

    monkeypatch.setattr(os, "pwritev", reluctant)
    table = DiskTable(start(), tmp_path).replace({2: drawn(2, 0)})
    assert calls > 1
    for name, tensor in drawn(2, 0).items():
        assert torch.equal(table[2][name], tensor)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice about files")
def test_rows_on_disk_are_asked_for_ahead(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, place, size, __: asked.append((place, size)))
    size = sum(t.nbytes for t in START.values())
    table = DiskTable(start(), tmp_path).replace({2: drawn(2, 0)})
    table.read_ahead([0, 2, 3, 999])
    assert asked == [(2 * 3 * size, size)]
