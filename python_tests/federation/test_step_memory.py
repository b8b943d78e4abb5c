import torch
import torch.nn.functional as F

from mmfl_fast.federation import Adam, Phase, Sgd
from mmfl_fast.federation.step_memory import bytes_per_client

WIDTH = 500


def loss(params, batch, context):
    hidden = torch.tanh(batch.inputs.values["right"] @ params["w"])
    return F.cross_entropy(hidden @ params["v"], batch.labels)


def needed(federation, optimiser, batch_size):
    client = max(federation.clients, key=lambda c: c.num_train)
    task = client.task
    start = {
        "w": torch.randn(task.inputs["right"].shape[1], WIDTH),
        "v": torch.randn(WIDTH, task.num_classes),
    }
    phase = Phase("p", loss, ("*",), optimiser, batch_size)
    return bytes_per_client(client, start, [phase]), sum(t.nbytes for t in start.values())


def test_it_holds_the_stack_the_optimiser_and_the_activations(toy_federation):
    few, params = needed(toy_federation, Sgd(0.1), 2)
    many, _ = needed(toy_federation, Sgd(0.1), 22)
    # Parameters, start, gradient and what is returned.
    assert 4 * params <= few <= 8 * params
    # Of each further row at least what tanh keeps and its gradient, in float32.
    assert 2 * 4 * WIDTH * 20 <= many - few <= 8 * 4 * WIDTH * 20
    assert needed(toy_federation, Sgd(0.1, 0.9), 2)[0] >= few + params // 2
    assert needed(toy_federation, Adam(0.1), 2)[0] >= few + 2 * params


def test_it_is_the_same_every_time(toy_federation):
    assert len({needed(toy_federation, Adam(0.1), 8) for _ in range(3)}) == 1
