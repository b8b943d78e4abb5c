import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import data, nn
from mmfl_fast.federation import Context, Inputs
from mmfl_fast.federation.batching import gather

SHAPES = {
    "motion": (9, 3),
    "words": (4, 5),
    "face": (6, 6),
    "colour": (3, 5, 5),
    "vitals": (7,),
    "map": (2, 8),
}
ENCODERS = {"words": "tokens", "face": "image", "map": "vector"}
STEPS = {"motion": 2, "words": 4, "face": 1, "colour": 1, "vitals": 1, "map": 1}


def six_modalities(rows=24, number=6):
    generator = np.random.default_rng(0)
    names = list(SHAPES)[:number]
    values = {m: generator.normal(size=(rows, *SHAPES[m])) for m in names}
    return data.from_arrays(values, np.arange(rows) % 3, np.arange(rows) % 4, name="six")


def test_every_kind_of_input_has_its_encoder(trial):
    federation = six_modalities()
    run = trial("fusion-fedavg", federation=federation, encoders=ENCODERS)
    client, params = federation.clients[0], run.starts()[0]
    inputs = gather(client.task, client.train_rows).inputs
    features = run.algorithm.encode(params, inputs)
    rows = client.num_train
    assert {m: tuple(x.shape) for m, x in features.items()} == {m: (rows, STEPS[m], 12) for m in SHAPES}
    assert run.algorithm.embed(params, inputs).shape == (rows, 2 * 12)
    assert run.algorithm.predict(params, inputs).shape == (rows, 3)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_any_number_of_modalities_trains(small, number):
    encoders = {m: kind for m, kind in ENCODERS.items() if m in list(SHAPES)[:number]}
    config = small("fusion-fedavg", encoders=encoders)
    result = mf.run(six_modalities(number=number), "fusion-fedavg", rounds=2, config=config)
    assert torch.isfinite(result.final["per_client"]).all()


def test_a_masked_modality_has_no_say_and_its_encoder_no_gradient(trial, toy_federation):
    federation = data.with_missing(toy_federation, rate=1.0, seed=3)
    run = trial("fusion-fedavg", federation=federation)
    for client, start in zip(federation.clients, run.starts(), strict=True):
        batch = gather(client.task, client.train_rows)
        gradients = torch.func.grad(run.algorithm.loss)(start, batch, Context(start, 0))
        for modality in client.task.modalities:
            own = [g for n, g in gradients.items() if n.startswith(f"encoder.{modality}.")]
            moved = max(float(g.abs().max()) for g in own)
            assert (moved > 0) == (modality in client.modalities)


def test_an_encoder_that_no_row_needs_does_not_run(trial, toy_federation, monkeypatch):
    federation = data.with_missing(toy_federation, rate=1.0, seed=3)
    run = trial("fusion-fedavg", federation=federation)
    skipped = run.train()
    monkeypatch.setattr(nn, "surely_absent", lambda _: False)
    for mine, whole in zip(skipped, run.train(), strict=True):
        assert all(torch.equal(mine[n], whole[n]) for n in whole)

    def refuse(kind, params, name, x):
        raise AssertionError(name)

    monkeypatch.undo()
    monkeypatch.setattr(nn, "encoder", refuse)
    client, params = federation.clients[0], run.starts()[0]
    (held,) = client.modalities
    with pytest.raises(AssertionError, match=f"^encoder.{held}$"):
        run.algorithm.predict(params, gather(client.task, client.train_rows).inputs)


def test_zero_fill_encodes_inputs_of_zero(trial, toy_federation):
    masked, filled = (
        trial("fusion-fedavg", federation=toy_federation, absent=absent) for absent in ("mask", "zero-fill")
    )
    client, params = toy_federation.clients[0], masked.starts()[0]
    values = gather(client.task, client.train_rows).inputs.values
    values = {**values, "right": torch.zeros_like(values["right"])}
    gone = torch.tensor([True, False]).expand(client.num_train, 2)
    everything = torch.ones_like(gone)
    zero_filled = filled.algorithm.predict(params, Inputs(values, gone))
    torch.testing.assert_close(zero_filled, masked.algorithm.predict(params, Inputs(values, everything)))
    assert not torch.allclose(zero_filled, masked.algorithm.predict(params, Inputs(values, gone)))


def test_each_row_is_masked_on_its_own(trial, toy_federation):
    run = trial("fusion-fedavg", federation=toy_federation)
    client, params = toy_federation.clients[0], run.starts()[0]
    values = gather(client.task, client.train_rows[:3]).inputs.values
    present = torch.tensor([[True, True], [True, False], [False, True]])
    together = run.algorithm.predict(params, Inputs(values, present))
    for row in range(3):
        alone = Inputs({m: x[row : row + 1] for m, x in values.items()}, present[row : row + 1])
        torch.testing.assert_close(run.algorithm.predict(params, alone)[0], together[row])


def test_the_benchmarks_sizes():
    federation = data.from_arrays(
        {"acc": np.zeros((8, 128, 3)), "gyro": np.zeros((8, 128, 3))},
        np.arange(8) % 6,
        [0] * 8,
        num_classes=6,
    )
    algorithm = mf.algorithms.get("fusion-fedavg")()
    model = algorithm.setup(federation, torch.Generator().manual_seed(0)).models[0]
    shapes = {n: tuple(t.shape) for n, t in model.items() if "bias" not in n and "gyro" not in n}
    assert shapes == {
        "encoder.acc.conv.0.weight": (32, 3, 5),
        "encoder.acc.conv.1.weight": (64, 32, 5),
        "encoder.acc.conv.2.weight": (128, 64, 5),
        "encoder.acc.gru.input.weight": (384, 128),
        "encoder.acc.gru.state.weight": (384, 128),
        "fusion.hidden.weight": (512, 128),
        "fusion.score.weight": (6, 512),
        "head.0.weight": (64, 768),
        "head.1.weight": (6, 64),
    }
    client = federation.clients[0]
    inputs = gather(client.task, client.train_rows).inputs
    assert algorithm.encode(model, inputs)["acc"].shape == (len(client.train_rows), 16, 128)
    (phase,) = algorithm.client_phases()
    assert (phase.batch_size, phase.largest_norm) == (16, 10.0)
    assert (phase.optimiser.learning_rate, phase.optimiser.momentum, phase.optimiser.weight_decay) == (
        0.05,
        0.9,
        1e-5,
    )


@pytest.mark.parametrize(
    ("encoders", "told"),
    [
        ({"lft": "vector"}, "encoders names the unknown modality 'lft'; did you mean 'left'"),
        ({"left": "image", "right": "series"}, r"modality 'right' of task 'toy': encoder 'series' needs"),
    ],
)
def test_encoders_that_do_not_fit_are_told(trial, toy_federation, encoders, told):
    with pytest.raises(ValueError, match=told):
        trial("fusion-fedavg", federation=toy_federation, encoders=encoders)


def test_an_unknown_kind_is_told(toy_federation):
    with pytest.raises(ValueError, match=r"encoders\.left: Input should be 'series'.*got 'lstm'"):
        mf.run(toy_federation, "fusion-fedavg", rounds=1, config={"encoders": {"left": "lstm"}})
