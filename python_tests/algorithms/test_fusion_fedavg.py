import torch

import mmfl_fast as mf
from mmfl_fast import data


def expected_mean(params, clients, name):
    sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    stacked = torch.stack([p[name].double() for p in params])
    return torch.tensordot(sizes / sizes.sum(), stacked, dims=1).float()


def test_everything_is_averaged_over_all_clients_of_the_round(trial, toy_federation):
    federation = data.with_missing(toy_federation, rate=0.8, seed=1)
    assert len({c.modalities for c in federation.clients}) > 1
    run = trial("fusion-fedavg", federation=federation)
    drawn = federation.clients[1:5]
    params = run.train(drawn)
    new = run.aggregate(params, drawn)
    for client in federation.clients:
        received = run.received(new, client)
        for name in received:
            torch.testing.assert_close(
                received[name], expected_mean(params, drawn, name), atol=1e-6, rtol=1e-5
            )


def test_a_client_hands_back_the_encoder_of_a_modality_that_it_lacks(trial, toy_federation):
    federation = data.with_missing(toy_federation, rate=1.0, seed=3)
    run = trial("fusion-fedavg", federation=federation, weight_decay=0.0)
    for client, start, params in zip(federation.clients, run.starts(), run.train(), strict=True):
        for modality in client.task.modalities:
            names = [n for n in start if n.startswith(f"encoder.{modality}.")]
            kept = all(torch.equal(start[n], params[n]) for n in names)
            assert kept == (modality not in client.modalities)


def test_tasks_do_not_meet(mixed_federation, small):
    config = small("fusion-fedavg")
    together = mf.run(mixed_federation, "fusion-fedavg", rounds=2, config=config).state
    assert {tuple(together.models[t]["head.1.bias"].shape) for t in range(2)} == {(4,), (3,)}
    single = data.Federation("images", mixed_federation.tasks[:1])
    alone = mf.run(single, "fusion-fedavg", rounds=2, config=config).state
    for name, tensor in alone.models[0].items():
        assert torch.equal(tensor, together.models[0][name]), name


def test_a_task_that_was_not_drawn_keeps_its_model(trial, mixed_federation):
    run = trial("fusion-fedavg")
    drawn = [c for c in mixed_federation.clients if c.task_index == 0]
    new = run.aggregate(run.train(drawn), drawn)
    for client in mixed_federation.clients:
        before, after = run.received(run.state, client), run.received(new, client)
        same = all(torch.equal(before[n], after[n]) for n in before)
        assert same == (client.task_index == 1)


def test_all_of_the_model_travels(trial, toy_federation, small):
    line = mf.run(toy_federation, "fusion-fedavg", rounds=1, config=small("fusion-fedavg")).history[0]
    model = trial("fusion-fedavg", federation=toy_federation).starts()[0]
    size = 4 * sum(t.numel() for t in model.values())
    assert line["bytes_up"] == line["bytes_down"] == size * len(toy_federation.clients)
