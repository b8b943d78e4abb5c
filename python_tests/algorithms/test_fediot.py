import pytest
import torch

from mmfl_fast import data
from mmfl_fast.algorithms.encoders_held import encoder_of, without_foreign_encoders


@pytest.fixture
def thinned(toy_federation):
    """Clients of either modality and of both."""
    federation = data.with_missing(toy_federation, rate=0.7, seed=2)
    assert {c.modalities for c in federation.clients} == {("left",), ("right",), ("left", "right")}
    return federation


def by_hand(run, params, alpha):
    """Equations of the docstring, name by name."""
    clients = run.federation.clients
    model = {}
    for name in run.starts()[0]:
        total, weight = 0.0, 0.0
        for client, own in zip(clients, params, strict=True):
            share = client.num_train
            if name.startswith("encoder."):
                modality = name.split(".")[1]
                if modality not in client.modalities:
                    continue
                share *= alpha if len(client.modalities) > 1 else 1
            total, weight = total + share * own[name].double(), weight + share
        model[name] = (total / weight).float()
    return model


@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_the_server_averages_as_the_equations_say(trial, thinned, alpha):
    run = trial("fediot", federation=thinned, multimodal_weight=alpha)
    params = run.train()
    new = run.aggregate(params)
    for name, expected in by_hand(run, params, alpha).items():
        torch.testing.assert_close(new.models[0][name], expected, atol=1e-6, rtol=1e-5)


def test_who_lacks_a_modality_has_no_say_in_its_encoder(trial, thinned):
    run = trial("fediot", federation=thinned)
    params = run.train()
    spoilt = [
        {n: t if n in without_foreign_encoders(p, c) else t + 100 for n, t in p.items()}
        for c, p in zip(thinned.clients, params, strict=True)
    ]
    assert any(not torch.equal(a[n], b[n]) for a, b in zip(params, spoilt, strict=True) for n in a)
    clean, other = run.aggregate(params).models[0], run.aggregate(spoilt).models[0]
    assert all(torch.equal(clean[n], other[n]) for n in clean)


def test_an_encoder_that_nobody_drawn_holds_stays(trial, thinned):
    run = trial("fediot", federation=thinned)
    drawn = [c for c in thinned.clients if c.modalities == ("left",)]
    new = run.aggregate(run.train(drawn), drawn)
    before, after = run.state.models[0], new.models[0]
    for name in encoder_of(before, "right"):
        assert torch.equal(before[name], after[name]), name
    for name in encoder_of(before, "left"):
        assert not torch.equal(before[name], after[name]), name


def test_the_weight_of_multimodal_clients_concerns_encoders_alone(trial, thinned):
    params = trial("fediot", federation=thinned).train()
    one, hundred = (
        trial("fediot", federation=thinned, multimodal_weight=w).aggregate(params).models[0]
        for w in (1.0, 100.0)
    )
    for name in one:
        assert torch.equal(one[name], hundred[name]) != name.startswith("encoder."), name


def test_with_every_modality_everywhere_it_is_fedavg(trial, toy_federation):
    run = trial("fediot", federation=toy_federation)
    params = run.train()
    mean = trial("fusion-fedavg", federation=toy_federation).aggregate(params).models[0]
    for name, tensor in run.aggregate(params).models[0].items():
        torch.testing.assert_close(tensor, mean[name], atol=1e-7, rtol=1e-6)


def test_an_encoder_is_told_by_its_whole_name():
    values = torch.zeros(())
    params = {"encoder.a.mlp": values, "encoder.ab.mlp": values, "head.0": values}
    assert list(encoder_of(params, "a")) == ["encoder.a.mlp"]
