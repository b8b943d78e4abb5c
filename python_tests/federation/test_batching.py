import numpy as np
import torch

from mmfl_fast.federation.batching import gather, gather_stacked, shuffled_rows


def test_a_pass_sees_every_training_row_once(toy_federation):
    client = toy_federation.clients[0]
    batches = shuffled_rows(client, np.random.default_rng(0)).split(7)
    assert [len(b) for b in batches[:-1]] == [7] * (len(batches) - 1)
    assert torch.equal(torch.cat(batches).sort().values, client.train_rows)


def test_stacked_batches_are_padded_with_ignored_rows(toy_federation):
    task = toy_federation.tasks[0]
    short, long = torch.tensor([3, 1]), torch.tensor([0, 2, 4])
    stacked = gather_stacked(task, torch.tensor([[0, 2, 4], [3, 1, -1]]))
    for position, rows in enumerate([long, short]):
        alone = gather(task, rows)
        n = len(rows)
        assert torch.equal(stacked.labels[position, :n], alone.labels)
        assert torch.equal(stacked.inputs.present[position, :n], alone.inputs.present)
        for name, values in alone.inputs.values.items():
            assert torch.equal(stacked.inputs.values[name][position, :n], values)
    assert stacked.labels[1, 2] == -100
    assert not stacked.inputs.present[1, 2].any()
    assert all((values[1, 2] == 0).all() for values in stacked.inputs.values.values())
