import threading

import pytest
import torch

from mmfl_fast.federation.client_workers import ClientWorkers


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

    workers = ClientWorkers(torch.device("cpu"))
    try:
        seen = dict(workers.map(item, range(3)))
    finally:
        workers.close()
    assert threading.get_ident() not in seen
    assert list(seen.values()) == [1, 1, 1]
    assert torch.get_num_threads() == 3


def test_results_come_in_the_order_of_the_items(set_threads):
    set_threads(2)
    workers = ClientWorkers(torch.device("cpu"))
    try:
        assert workers.map(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    finally:
        workers.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_problem_is_told_and_ends_the_rest(set_threads, threads):
    set_threads(threads)
    workers, done = ClientWorkers(torch.device("cpu")), []

    def work(item):
        if item in (2, 7):
            raise ValueError(f"item {item}")
        done.append(item)

    with pytest.raises(ValueError, match="item 2"):
        workers.map(work, range(10_000))
    assert len(done) < 10_000
    workers.close()
