import dataclasses

import torch

from mmfl_fast.federation import Phase, Sgd, cohorts
from mmfl_fast.federation.cohorts import ChunkSizes, cut_cohorts
from mmfl_fast.federation.machine_limits import Room


def test_on_a_cpu_every_client_is_alone(toy_federation):
    clients = toy_federation.clients
    chunks = cut_cohorts(clients, [{"w": torch.zeros(3)}] * len(clients), [], ChunkSizes(None, None))
    assert sorted(map(tuple, chunks)) == [(i,) for i in range(len(clients))]


def test_chunks_hold_clients_of_one_shape(toy_federation):
    clients = toy_federation.clients
    starts = [{"w": torch.zeros(2 + i % 2)} for i in range(len(clients))]
    chunks = cut_cohorts(clients, starts, [], ChunkSizes(2, None))
    assert sorted(p for chunk in chunks for p in chunk) == list(range(len(clients)))
    assert max(map(len, chunks)) == 2
    assert all(len({starts[p]["w"].shape for p in chunk}) == 1 for chunk in chunks)


def test_a_gpu_takes_as_many_as_its_memory_holds(toy_federation, monkeypatch):
    """On the device that computes nothing; its chunks are those of a GPU with so much memory."""

    def loss(params, batch, context):
        return (batch.inputs.values["right"] @ params["w"]).square().mean()

    nowhere = torch.device("meta")
    task = toy_federation.tasks[0]
    there = dataclasses.replace(
        task,
        inputs={name: tensor.to(nowhere) for name, tensor in task.inputs.items()},
        present=task.present.to(nowhere),
        labels=task.labels.to(nowhere),
    )
    clients = [dataclasses.replace(client, task=there) for client in toy_federation.clients]
    start = {"w": torch.zeros(5, 100, device=nowhere)}
    phases = [Phase("p", loss, ("*",), Sgd(0.1), 8)]
    free = [Room(2**20, "it")]
    monkeypatch.setattr(cohorts, "free_memory", lambda _: free[0])
    sizes = ChunkSizes(None, None)
    fitted = sizes.of(clients[0], start, phases)
    needed = cohorts.bytes_per_client(clients[0], start, phases)
    assert fitted == 2**19 // needed > 1
    assert ChunkSizes(None, 2**-11).of(clients[0], start, phases) == fitted
    assert ChunkSizes(None, 2**-40).of(clients[0], start, phases) == 1
    assert ChunkSizes(7, None).of(clients[0], start, phases) == 7
    # What the run itself takes later does not change it.
    free[0] = Room(2**10, "it")
    assert sizes.of(clients[0], start, phases) == fitted
    chunks = cut_cohorts(clients, [start] * len(clients), phases, sizes)
    assert max(map(len, chunks)) == min(fitted, len(clients))
