from __future__ import annotations

import pytest

from mmfl_fast.data import merge


def test_tasks_stand_side_by_side(make_federation):
    a, b = make_federation(name="a", clients=3), make_federation(name="b", clients=5)
    both = merge([a, b])
    assert both.name == "a+b"
    assert both.tasks == (a.tasks[0], b.tasks[0])
    assert [c.index for c in both.clients] == list(range(8))
    assert [c.task_index for c in both.clients] == [0] * 3 + [1] * 5
    assert both.clients[3].name == "b/0"
    assert both.clients[3].train_rows.tolist() == b.clients[0].train_rows.tolist()


def test_name_and_generators_are_taken(make_federation):
    assert merge((make_federation(name=n) for n in "abc"), name="all").name == "all"


def test_duplicate_names_are_listed(make_federation):
    feds = [make_federation(rows=20, name=name) for name in ("x", "y", "x", "z", "y")]
    with pytest.raises(ValueError, match=r"found more than once: x, y; give from_arrays another name"):
        merge(feds)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ([], ValueError, "is empty"),
        (None, TypeError, "federations must be a sequence of Federation, got NoneType"),
        (["a"], TypeError, r"federations\[0\] must be a Federation, got str"),
    ],
)
def test_wrong_argument(argument, error, message):
    with pytest.raises(error, match=message):
        merge(argument)


def test_a_name_is_a_word(make_federation):
    with pytest.raises(TypeError, match="name must be a non-empty string, got 1"):
        merge([make_federation(rows=20)], name=1)


def test_a_single_federation_is_no_sequence(make_federation):
    with pytest.raises(TypeError, match="got a single Federation"):
        merge(make_federation(rows=20))
