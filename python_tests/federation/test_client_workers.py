import os
import threading

import pytest
import torch

from mmfl_fast.federation.client_workers import map_clients

CPU = torch.device("cpu")


def test_every_worker_limits_torch_before_its_first_item(set_threads, monkeypatch):
    set_threads(3)
    limits = {}
    limit = torch.set_num_threads

    def recording(count):
        limits[threading.get_ident()] = count
        limit(count)

    monkeypatch.setattr(torch, "set_num_threads", recording)
    together = threading.Barrier(3)

    def item(_):
        together.wait(timeout=60)
        return threading.get_ident(), limits.get(threading.get_ident())

    seen = dict(map_clients(item, range(3), CPU))
    assert threading.get_ident() in seen
    assert list(seen.values()) == [1, 1, 1]
    assert torch.get_num_threads() == 3


def test_the_threads_are_those_of_torchs_own_loops(set_threads):
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted under /proc")
    set_threads(3)
    torch.rand(1 << 20).exp()
    before = set(os.listdir("/proc/self/task"))
    together = threading.Barrier(3)
    found = map_clients(lambda _: (together.wait(timeout=60), threading.get_native_id())[1], range(3), CPU)
    assert {str(i) for i in found} <= before


def test_results_come_in_the_order_of_the_items(set_threads):
    set_threads(2)
    assert map_clients(lambda x: x * x, range(20), CPU) == [x * x for x in range(20)]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_problem_is_told_and_ends_the_rest(set_threads, threads):
    set_threads(threads)
    done = []

    def work(item):
        if item in (2, 7):
            raise ValueError(f"item {item}")
        done.append(item)

    with pytest.raises(ValueError, match="item 2"):
        map_clients(work, range(10_000), CPU)
    assert len(done) < 10_000


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_ends_the_rest(set_threads, threads):
    set_threads(threads)
    done = []

    def work(item):
        if item == 2:
            raise KeyboardInterrupt
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        map_clients(work, range(10_000), CPU)
    assert len(done) < 10_000
    assert torch.get_num_threads() == threads


def test_inside_of_an_item_the_items_are_taken_one_after_the_other(set_threads):
    set_threads(2)

    def outer(_):
        torch.set_num_threads(2)
        return map_clients(lambda _: threading.get_ident(), range(4), CPU), threading.get_ident()

    for inner, thread in map_clients(outer, range(4), CPU):
        assert inner == [thread] * 4
