import gc
import weakref

import pytest

import mmfl_fast as mf
from mmfl_fast.federation import simulation
from mmfl_fast.federation.garbage import searched_once


class Cycle:
    def __init__(self):
        self.own = self


@pytest.fixture(autouse=True)
def nothing_is_set_aside():
    assert gc.get_freeze_count() == 0
    yield
    gc.unfreeze()


def test_what_a_full_search_has_left_is_set_aside_until_the_end():
    with searched_once():
        assert gc.get_freeze_count() == 0
        gc.collect()
        aside = gc.get_freeze_count()
        assert aside > 10_000
        made = weakref.ref(Cycle())
        gc.collect()
        assert made() is None
        # Once is enough: what came later may become garbage.
        assert gc.get_freeze_count() <= aside
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gc.get_freeze_count() == 0


def test_what_somebody_has_set_aside_stays_so():
    gc.freeze()
    with searched_once():
        gc.collect()
    assert gc.get_freeze_count() > 0


def test_rounds_after_the_first_do_not_search_the_libraries(toy_federation, small, monkeypatch):
    aside, original = [], simulation._Run.round

    def counted(self, state, number):
        gc.collect()
        aside.append(gc.get_freeze_count() > 0)
        return original(self, state, number)

    monkeypatch.setattr(simulation._Run, "round", counted)
    mf.run(toy_federation, "local", rounds=3, config=small("local"))
    assert aside == [False, True, True]
    assert gc.get_freeze_count() == 0
