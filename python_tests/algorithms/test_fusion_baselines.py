"""Federations that are hard on every method of the fusion model."""

import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.algorithms.fusion_backbone import FusionAlgorithm

METHODS = [m for m in mf.algorithms.names() if issubclass(mf.algorithms.get(m), FusionAlgorithm)]
VARIANTS = [*((m, {}) for m in METHODS), ("fedproto", {"exchange_weights": False})]


@pytest.fixture
def hard_federation():
    """Three modalities; clients of one, two, all and none of them, one of a single row; a class of nobody."""
    held = [
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, True, False),
        (True,) * 3,
    ]
    held += [(False,) * 3, (True,) * 3]
    sizes = [14, 14, 14, 14, 14, 8, 1]
    owners = np.repeat(np.arange(len(sizes)), sizes)
    train = np.arange(len(owners)) % 7 != 0
    train[-1] = True
    generator = np.random.default_rng(0)
    labels = np.where(np.arange(len(owners)) % 3 == 2, 3, np.arange(len(owners)) % 3)
    centres = {"motion": (6, 2), "sound": (5,), "picture": (4, 4)}
    modalities = {
        name: generator.normal(0, 2, (5, *shape))[labels] + generator.normal(size=(len(owners), *shape))
        for name, shape in centres.items()
    }
    return data.from_arrays(
        modalities,
        labels,
        owners,
        split=np.where(train, "train", "test"),
        present={name: np.array(held)[owners, m] for m, name in enumerate(modalities)},
        num_classes=5,
        name="hard",
    )


@pytest.mark.parametrize(("method", "options"), VARIANTS)
@pytest.mark.parametrize("absent", ["mask", "zero-fill"])
def test_a_hard_federation(hard_federation, small, method, options, absent):
    config = small(method, participation=0.6, absent=absent, **options)
    result = mf.run(hard_federation, method, rounds=3, config=config)
    has_test_rows = [len(c.test_rows) > 0 for c in hard_federation.clients]
    assert torch.isfinite(result.final["per_client"][has_test_rows]).all()
    assert all(np.isfinite(line["train_loss"]) for line in result.history)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_a_client_of_one_row_takes_one_step(hard_federation, small, method, options):
    lone = hard_federation.clients[-1]
    assert lone.num_train == 1
    line = mf.run(hard_federation, method, rounds=1, config=small(method, **options)).history[0]
    assert line["optimiser_steps"] == sum(-(-c.num_train // 8) for c in hard_federation.clients)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_a_round_of_clients_without_any_modality(trial, hard_federation, method, options):
    run = trial(method, federation=hard_federation, **options)
    drawn = [c for c in hard_federation.clients if not c.modalities]
    assert len(drawn) == 1
    new = run.aggregate(run.train(drawn), drawn)
    for client in hard_federation.clients:
        received = run.received(new, client)
        assert all(t.isfinite().all() for t in received.values())
        for name in (n for n in received if n.startswith("encoder.")):
            torch.testing.assert_close(received[name], run.starts()[client.index][name], atol=1e-4, rtol=1e-3)
