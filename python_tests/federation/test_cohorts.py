import torch

from mmfl_fast.federation.cohorts import cut_cohorts


def test_on_a_cpu_every_client_is_alone(toy_federation):
    clients = toy_federation.clients
    chunks = cut_cohorts(clients, [{"w": torch.zeros(3)}] * len(clients), None, None)
    assert sorted(map(tuple, chunks)) == [(i,) for i in range(len(clients))]


def test_chunks_hold_clients_of_one_shape(toy_federation):
    clients = toy_federation.clients
    starts = [{"w": torch.zeros(2 + i % 2)} for i in range(len(clients))]
    chunks = cut_cohorts(clients, starts, 2, None)
    assert sorted(p for chunk in chunks for p in chunk) == list(range(len(clients)))
    assert max(map(len, chunks)) == 2
    assert all(len({starts[p]["w"].shape for p in chunk}) == 1 for chunk in chunks)
