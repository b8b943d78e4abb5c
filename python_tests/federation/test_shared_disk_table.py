import pytest
import torch

from mmfl_fast.federation import ParameterTable
from mmfl_fast.federation.ranks import Ranks
from mmfl_fast.federation.shared_disk_table import SharedDiskTable

CPU = torch.device("cpu")


class WithAnother(Ranks):
    """Rank 0 of two; the other reports what a function makes of this one's report."""

    def __init__(self, other):
        super().__init__(0, 2)
        self._other = other

    def exchange(self, work):
        own = work()
        return [own, self._other(own)]


def table(folder, ranks):
    start = {"a": torch.zeros(3)}
    return SharedDiskTable(ParameterTable(dict.fromkeys(range(4), start)), folder, CPU, ranks)


@pytest.mark.parametrize(
    "seen",
    [lambda _: None, lambda own: ("another machine", own[1]), lambda own: (own[0], [(0, 0)])],
)
def test_processes_that_share_no_files_are_refused(tmp_path, seen):
    other = WithAnother(lambda own: seen(own) if isinstance(own, tuple) else own)
    with pytest.raises(
        ValueError, match=r"rank 1 does not see those of rank 0 \(.*rows-0\.bin\); use client_state="
    ):
        table(tmp_path, other).replace({1: {"a": torch.ones(3)}})


def test_methods_that_keep_nothing_run_on_any_machines(tmp_path):
    other = WithAnother(lambda own: None if isinstance(own, tuple) else own)
    assert len(SharedDiskTable(ParameterTable({}), tmp_path, CPU, other).replace({})) == 0


def test_rows_that_another_has_written_are_read(tmp_path):
    alone = table(tmp_path, Ranks()).replace({2: {"a": torch.full((3,), 2.0)}})
    other = WithAnother(lambda own: [2] if own == [1] else own)
    shared = table(tmp_path, other).replace({1: {"a": torch.ones(3)}})
    assert [shared[row]["a"].tolist() for row in range(4)] == [[0.0] * 3, [1.0] * 3, [2.0] * 3, [0.0] * 3]
    assert alone[2]["a"].tolist() == [2.0] * 3


def test_temporary_files_are_gone_once_all_have_opened_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    kept = table(None, WithAnother(lambda own: own)).replace({1: {"a": torch.ones(3)}})
    assert kept[1]["a"].tolist() == [1.0] * 3
    assert not list(tmp_path.iterdir())


def test_an_older_version_is_known_as_such_before_anything_is_written(tmp_path):
    older = table(tmp_path, WithAnother(lambda own: own)).replace({1: {"a": torch.ones(3)}})
    with pytest.raises(KeyError):
        older.replace({9: {"a": torch.ones(3)}})
    assert not older.newest
