import pytest
import torch

from mmfl_fast.federation import ParameterTable


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


def test_rows_of_one_shape_are_stacked():
    table = ParameterTable(rows())
    assert table.tensors()["0/a"].shape == (2, 2)
    assert table[2]["a"].untyped_storage().data_ptr() == table[5]["a"].untyped_storage().data_ptr()


def test_replace_leaves_the_old_table_alone():
    table = ParameterTable(rows())
    newer = table.replace({5: {"a": torch.tensor([7.0, 8.0])}})
    assert table[5]["a"].tolist() == [3.0, 4.0]
    assert newer[5]["a"].tolist() == [7.0, 8.0]
    assert newer[2]["a"].tolist() == [1.0, 2.0]


def test_replace_refuses_other_shapes():
    with pytest.raises(ValueError, match="row 5"):
        ParameterTable(rows()).replace({5: {"a": torch.zeros(3)}})


def test_tensors_restore_a_table():
    table = ParameterTable(rows())
    blank = ParameterTable({r: {n: torch.zeros_like(t) for n, t in p.items()} for r, p in rows().items()})
    restored = blank.with_tensors(table.tensors())
    assert restored[9]["a"].tolist() == [5.0]
    assert restored[2]["a"].tolist() == [1.0, 2.0]
