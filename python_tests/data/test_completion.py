from dataclasses import replace

import numpy as np
import pytest
import torch

from mmfl_fast import data


@pytest.fixture(scope="module")
def pairs():
    """The second modality is a linear function of the first and the class, with a little noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 240)
    first = rng.normal(size=(240, 2, 3)).astype(np.float32)
    second = (
        first.reshape(240, 6) @ rng.normal(size=(6, 4)) + labels[:, None] + 0.05 * rng.normal(size=(240, 4))
    )
    clients, split = np.arange(240) // 80, np.where(np.arange(240) % 5 == 4, "test", "train")
    modalities = {"image": first, "text": second.astype(np.float32)}
    return data.from_arrays(modalities, labels, clients, split, name="pairs")


@pytest.fixture(scope="module")
def thinned(pairs):
    return data.with_missing(pairs, rate=0.5, level="sample", seed=0, parts=("train", "test"))


def error(filled, truth, name):
    """Root mean square error on the rows that were filled in, in units of the modality's spread."""
    task, true = filled.tasks[0], truth.tasks[0]
    rows = task.is_train
    difference = (task.inputs[name] - true.inputs[name])[rows]
    return float(difference.square().mean().sqrt() / true.inputs[name].std())


def test_the_oracle_puts_the_truth_back_in_training_rows(pairs, thinned):
    filled = data.complete(thinned, "oracle", original=pairs).tasks[0]
    train, test = filled.is_train, ~filled.is_train
    assert filled.present[train].all()
    for name, x in filled.inputs.items():
        assert torch.equal(x[train], pairs.tasks[0].inputs[name][train])
        assert torch.equal(x[test], thinned.tasks[0].inputs[name][test])
    assert torch.equal(filled.present[test], thinned.tasks[0].present[test])


def test_regression_comes_close_to_the_truth_and_keeps_what_was_there(pairs, thinned):
    filled = data.complete(thinned, noise=0.0)
    assert filled.tasks[0].present[filled.tasks[0].is_train].all()
    assert error(thinned, pairs, "text") > 0.4
    assert error(filled, pairs, "text") < 0.1
    there = thinned.tasks[0].present
    for m, (name, x) in enumerate(filled.tasks[0].inputs.items()):
        assert torch.equal(x[there[:, m]], thinned.tasks[0].inputs[name][there[:, m]])
    test = ~filled.tasks[0].is_train
    assert torch.equal(filled.tasks[0].present[test], there[test])


def test_noise_has_the_spread_of_the_residuals(pairs, thinned):
    lost = ~thinned.tasks[0].present[:, 1] & thinned.tasks[0].is_train
    settings = [(0.0, 0), (1.0, 0), (2.0, 0), (2.0, 0), (2.0, 1)]
    filled = [data.complete(thinned, noise=noise, seed=seed) for noise, seed in settings]
    expected, single, double, again, other = (fed.tasks[0].inputs["text"][lost] for fed in filled)
    misses = (expected - pairs.tasks[0].inputs["text"][lost]).std()
    assert 0.5 < (single - expected).std() / misses < 1.5
    torch.testing.assert_close(double - expected, 2 * (single - expected), atol=1e-5, rtol=1e-4)
    assert torch.equal(double, again)
    assert not torch.equal(double, other)


def test_what_is_filled_in_does_not_depend_on_the_truth(pairs, thinned):
    """The side that a row lacks may be anything: it was taken away before."""
    lies = data.from_arrays(
        {m: x.numpy() + 100.0 for m, x in pairs.tasks[0].inputs.items()},
        pairs.tasks[0].labels.numpy(),
        np.arange(240) // 80,
        np.where(np.arange(240) % 5 == 4, "test", "train"),
        name="pairs",
    )
    present = thinned.tasks[0].present
    mixed = {
        m: torch.where(present[:, j].reshape(-1, *[1] * (x.dim() - 1)), x, lies.tasks[0].inputs[m])
        for j, (m, x) in enumerate(pairs.tasks[0].inputs.items())
    }
    whole = data.from_arrays(
        {m: x.numpy() for m, x in mixed.items()},
        pairs.tasks[0].labels.numpy(),
        np.arange(240) // 80,
        np.where(np.arange(240) % 5 == 4, "test", "train"),
        name="pairs",
    )
    same = data.with_missing(whole, rate=0.5, level="sample", seed=0, parts=("train", "test"))
    for name, x in data.complete(same).tasks[0].inputs.items():
        assert torch.equal(x, data.complete(thinned).tasks[0].inputs[name])


def test_a_client_learns_from_its_own_rows_only(thinned):
    task = thinned.tasks[0]
    inputs = {m: x.clone() for m, x in task.inputs.items()}
    for x in inputs.values():
        x[task.owner == 2] *= -3.0
    changed = replace(thinned, tasks=(replace(task, inputs=inputs),))
    others = task.owner != 2
    for name, x in data.complete(changed).tasks[0].inputs.items():
        assert torch.equal(x[others], data.complete(thinned).tasks[0].inputs[name][others])


def test_clients_and_rows_that_cannot_be_completed_stay_incomplete(pairs):
    nothing = data.with_missing(pairs, rate=1.0, level="sample", seed=0)
    assert torch.equal(data.complete(nothing).tasks[0].present, nothing.tasks[0].present)
    empty = data.with_missing(pairs, rate=0.5, level="sample", seed=0, rule="independent")
    gone = ~empty.tasks[0].present.any(dim=1)
    assert gone.any()
    filled = data.complete(empty).tasks[0]
    assert not filled.present[gone].any()
    assert filled.present[~gone & filled.is_train].all()


def test_three_modalities_and_every_pattern():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 3)).astype(np.float32)
    modalities = {"a": base, "b": base * 2.0, "c": base[:, :2] - 1.0}
    fed = data.from_arrays(modalities, rng.integers(0, 2, 200), np.zeros(200, int), name="three")
    thinned = data.with_missing(fed, rate=0.8, level="sample", seed=0)
    filled = data.complete(thinned, noise=0.0)
    assert filled.tasks[0].present[filled.tasks[0].is_train].all()
    for name in ("a", "b"):
        assert error(filled, fed, name) < error(thinned, fed, name) / 2


def test_none_leaves_everything_as_it_is(thinned):
    assert data.complete(thinned, "none") is thinned


def test_what_it_refuses(pairs, thinned):
    with pytest.raises(ValueError, match="backend"):
        data.complete(thinned, "dall-e")
    with pytest.raises(TypeError, match=r"generator must be a mf\.data\.PairGenerator, got int"):
        data.complete(thinned, "generator", generator=3)
    with pytest.raises(ValueError, match="needs original"):
        data.complete(thinned, "oracle")
    with pytest.raises(ValueError, match="must not see it"):
        data.complete(thinned, "feature", original=pairs)
    with pytest.raises(ValueError, match="noise must be finite and >= 0, got -1"):
        data.complete(thinned, noise=-1.0)
    fewer = data.with_missing(data.dirichlet(pairs, clients=2, alpha=1.0, seed=0), rate=0.5, seed=0)
    shuffled = data.from_arrays({"image": np.zeros((4, 2))}, [0, 1, 0, 1], [0, 0, 1, 1], name="other")
    with pytest.raises(ValueError, match="original must have the tasks"):
        data.complete(fewer, "oracle", original=shuffled)
