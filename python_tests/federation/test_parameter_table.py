import tracemalloc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmfl_fast.federation import ParameterTable
from mmfl_fast.federation.disk_table import DiskTable


def rows():
    return {
        2: {"a": torch.tensor([1.0, 2.0])},
        5: {"a": torch.tensor([3.0, 4.0])},
        9: {"a": torch.tensor([5.0]), "b": torch.zeros(2, 2)},
    }


def test_reads_back_what_was_put_in():
    table = ParameterTable(rows())
    assert len(table) == 3
    assert table.get(3) == {}
    for row, parameters in rows().items():
        assert table[row].keys() == parameters.keys()
        assert all(torch.equal(table[row][name], tensor) for name, tensor in parameters.items())


def test_a_checkpoint_stacks_rows_of_one_shape():
    table = ParameterTable(rows()).replace({5: {"a": torch.tensor([7.0, 8.0])}})
    stored = table.tensors()
    assert stored["start/0/a"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert stored["row/0"].tolist() == [5]
    assert stored["replaced/0/a"].tolist() == [[7.0, 8.0]]
    assert stored["row/1"].tolist() == []
    assert stored["replaced/1/b"].shape == (0, 2, 2)


def test_replace_leaves_the_old_table_alone():
    table = ParameterTable(rows())
    newer = table.replace({5: {"a": torch.tensor([7.0, 8.0])}})
    assert table[5]["a"].tolist() == [3.0, 4.0]
    assert newer[5]["a"].tolist() == [7.0, 8.0]
    assert newer[2]["a"].tolist() == [1.0, 2.0]


def test_replace_refuses_other_shapes():
    with pytest.raises(ValueError, match="row 5"):
        ParameterTable(rows()).replace({5: {"a": torch.zeros(3)}})


def test_every_version_stays_as_it_is_and_so_does_what_was_read_from_it():
    versions, read = [ParameterTable(rows())], []
    for value in range(1, 5):
        table = versions[-1]
        read.append(table[5]["a"])
        versions.append(table.replace({5: {"a": torch.full((2,), float(value))}}))
    branch = versions[1].replace({2: {"a": torch.zeros(2)}})
    expected = [[3.0, 4.0], *([float(v)] * 2 for v in range(1, 5))]
    assert [v[5]["a"].tolist() for v in versions] == expected
    assert [t.tolist() for t in read] == expected[:4]
    assert branch[5]["a"].tolist() == [1.0, 1.0]
    assert versions[4][2]["a"].tolist() == [1.0, 2.0]


def test_a_version_knows_what_has_changed_since():
    table = ParameterTable.of_kinds([{"a": torch.zeros(2)}], [0] * 5000)
    one = {"a": torch.ones(2)}
    newer = table.replace({4321: one, 7: one}).replace({8: one})
    newest = newer.replace({7: one, 4999: one}).replace({7: one})
    assert newer.changed_since(table) == [7, 8, 4321]
    assert newest.changed_since(newer) == [7, 4999]
    assert newest.changed_since(table) == [7, 8, 4321, 4999]
    assert newest.changed_since(newest) == []
    assert len(newest.changed_since(newest.with_tensors(newest.tensors()))) == 5000


def test_a_table_has_its_own_copy_of_new_values():
    values = {"a": torch.tensor([7.0, 8.0])}
    table = ParameterTable(rows()).replace({5: values})
    values["a"].zero_()
    assert table[5]["a"].tolist() == [7.0, 8.0]


def test_every_tensor_of_a_row_begins_where_one_of_its_own_would():
    buffer = torch.arange(40.0)
    start = {"a": buffer[1:8], "b": buffer[8:20].view(3, 4).T, "flag": torch.tensor([True, False, True])}
    table = ParameterTable({0: start, 3: start})
    table = table.replace({3: {n: t.clone() for n, t in start.items()}})
    restored = table.with_tensors({n: t.clone() for n, t in table.tensors().items()})
    for row in (table[0], table[3], restored[0], restored[3], table.to(torch.device("cpu"))[3]):
        assert all(t.data_ptr() % 64 == 0 and t.is_contiguous() for t in row.values())
        assert all(torch.equal(t, start[n]) for n, t in row.items())


def test_rows_of_few_kinds():
    kinds = [{"a": torch.zeros(2)}, {"a": torch.ones(3)}]
    table = ParameterTable.of_kinds(kinds, [1, 0, -1, 1])
    assert list(table) == [0, 1, 3]
    assert table[3]["a"].data_ptr() == table[0]["a"].data_ptr()
    asked = []
    longer = table.replace({3: {"a": torch.full((3,), 5.0)}}).mapped(
        lambda row: (asked.append(0), {**row, "b": 2 * row["a"]})[1]
    )
    assert [longer[row]["b"].tolist() for row in longer] == [[2.0] * 3, [0.0] * 2, [10.0] * 3]
    # The two kinds and the row that is its own.
    assert len(asked) == 3
    with pytest.raises(ValueError, match="expected numbers below 2, got 2"):
        ParameterTable.of_kinds(kinds, [0, 2])
    with pytest.raises(ValueError, match="numbered from 0, got row -1"):
        ParameterTable({-1: kinds[0]})


class BytesMade(TorchDispatchMode):
    """Adds up the tensors that operators of torch make in memory of their own."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        if all(returned.alias_info is None for returned in function._schema.returns):
            self.total += made.nbytes
        return made


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_replacement_costs_what_its_rows_cost_however_many_there_are(on_disk, tmp_path):
    start = {"w": torch.zeros(7, 5), "b": torch.zeros(3)}
    new = {row: {n: torch.ones_like(t) for n, t in start.items()} for row in range(0, 1_000, 50)}
    costs = []
    for count in (1_000, 50_000):
        table = ParameterTable.of_kinds([start], [0] * count)
        # All have been replaced before: with none the tree in memory has no branch to share.
        table = (
            DiskTable(table, tmp_path / str(count))
            if on_disk
            else table.replace(dict.fromkeys(range(count), start))
        )
        with BytesMade() as made:
            # The first operator imports much.
            torch.empty(0)
            tracemalloc.start()
            table.replace(new)
            costs.append((made.total, tracemalloc.get_traced_memory()[1]))
            tracemalloc.stop()
    (few, few_python), (many, many_python) = costs
    # Of a row 140 and 12 bytes, each to the end of a line.
    assert few == many == (0 if on_disk else 20 * 256)
    # The tree has a level more.
    assert many_python < 1.5 * few_python + 5_000


def test_tensors_restore_a_table():
    table = ParameterTable(rows()).replace({2: {"a": torch.tensor([7.0, 8.0])}})
    blank = ParameterTable({r: {n: torch.zeros_like(t) for n, t in p.items()} for r, p in rows().items()})
    restored = blank.with_tensors(table.tensors())
    assert restored[9]["a"].tolist() == [5.0]
    assert restored[2]["a"].tolist() == [7.0, 8.0]
    assert restored[5]["a"].tolist() == [3.0, 4.0]
