from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mmfl_fast.data import dirichlet, from_arrays, merge, with_missing
from mmfl_fast.data.missing_rates import missing_rates


def lost_by_client(before, after, rows="train_rows"):
    """Return bool [clients, modalities]; asserts that a client loses a modality in all rows or in none."""
    (old,), (new,) = before.tasks, after.tasks
    lost = old.present & ~new.present
    result = []
    for client in before.clients:
        mine = lost[getattr(client, rows)]
        assert (mine == mine[:1]).all()
        result.append(mine[0])
    return torch.stack(result)


def test_zeroes_inputs_marks_them_absent_and_touches_nothing_else(make_federation):
    fed = make_federation(modalities=3)
    before = {m: x.clone() for m, x in fed.tasks[0].inputs.items()}
    thin = with_missing(fed, 0.8, seed=3)
    (old,), (new,) = fed.tasks, thin.tasks
    assert (~new.present).any()
    for j, m in enumerate(new.modalities):
        there = new.present[:, j]
        assert new.inputs[m].shape == before[m].shape
        assert torch.equal(new.inputs[m][there], before[m][there])
        assert (new.inputs[m][~there] == 0).all()
        assert torch.equal(old.inputs[m], before[m])
    assert old.present.all()
    for kept in ("labels", "owner", "is_train"):
        assert torch.equal(getattr(old, kept), getattr(new, kept))


def test_test_rows_stay_complete_unless_asked(make_federation):
    fed = make_federation()
    task = with_missing(fed, 1.0).tasks[0]
    assert task.present[~task.is_train].all()
    assert not task.present[task.is_train].all(dim=1).any()
    task = with_missing(fed, 1.0, parts=("test",)).tasks[0]
    assert task.present[task.is_train].all()
    assert not task.present[~task.is_train].all(dim=1).any()


@pytest.mark.parametrize("rule", ["subset", "independent"])
def test_a_client_loses_the_same_in_training_and_test_rows(make_federation, rule):
    fed = make_federation(rows=2000, clients=40, modalities=3)
    both = with_missing(fed, 0.6, rule=rule, parts=("train", "test"))
    train = lost_by_client(fed, both)
    assert torch.equal(train, lost_by_client(fed, both, "test_rows"))
    assert train.any()
    assert torch.equal(train, lost_by_client(fed, with_missing(fed, 0.6, rule=rule)))


@pytest.mark.parametrize("level", ["client", "sample"])
@pytest.mark.parametrize("rule", ["subset", "independent"])
def test_same_seed_same_draw(make_federation, level, rule):
    def mask(seed, *others):
        fed = merge([make_federation(clients=30), *others])
        return with_missing(fed, 0.5, level, seed, rule).tasks[0].present

    other = make_federation(name="other")
    assert torch.equal(mask(0), mask(0))
    assert torch.equal(mask(0), mask(0, other))
    assert not torch.equal(mask(0), mask(1))


def test_tasks_draw_independently(make_federation):
    fed = merge([make_federation(name=name, clients=60, rows=2000) for name in ("a", "b")])
    a, b = with_missing(fed, 0.5).tasks
    assert not torch.equal(a.present, b.present)


@pytest.mark.parametrize("level", ["client", "sample"])
@pytest.mark.parametrize("rule", ["subset", "independent"])
def test_a_larger_rate_only_adds(make_federation, level, rule):
    fed = make_federation(rows=1500, clients=50, modalities=3)
    masks = [with_missing(fed, q, level, 0, rule).tasks[0].present for q in (0.0, 0.2, 0.6, 1.0)]
    assert masks[0].all()
    for fuller, thinner in itertools.pairwise(masks):
        assert (thinner <= fuller).all()
        assert not torch.equal(thinner, fuller)


def test_subset_rule_frequencies():
    # 4000 clients with three modalities: incomplete with probability 0.8, then one of 6 subsets.
    count = 4000
    who = np.repeat(np.arange(count), 2)
    x = np.ones((2 * count, 1))
    fed = from_arrays({"a": x, "b": x, "c": x}, who * 0, who, np.full(2 * count, "train"))
    lost = lost_by_client(fed, with_missing(fed, 0.8, seed=5))
    code = (lost * torch.tensor([1, 2, 4])).sum(dim=1)
    counts = torch.bincount(code, minlength=8)
    assert counts[7] == 0
    assert abs(counts[0] / count - 0.2) < 4 * np.sqrt(0.16 / count)
    expected = 0.8 / 6
    tolerance = 4 * np.sqrt(expected * (1 - expected) / count)
    assert ((counts[1:7] / count - expected).abs() < tolerance).all()


def test_subset_rule_takes_one_of_two():
    count = 2000
    x = np.ones((count, 1))
    fed = from_arrays({"a": x, "b": x}, np.zeros(count, int), np.arange(count), np.full(count, "train"))
    present = with_missing(fed, 1.0).tasks[0].present
    assert (present.sum(dim=1) == 1).all()
    assert abs(float(present[:, 0].float().mean()) - 0.5) < 4 * 0.5 / np.sqrt(count)


def test_independent_rule_frequencies():
    count, q = 10000, 0.8
    x = np.ones((count, 1))
    fed = from_arrays({"a": x, "b": x}, np.zeros(count, int), np.arange(count), np.full(count, "train"))
    present = with_missing(fed, q, rule="independent").tasks[0].present
    shares = torch.bincount(present.sum(dim=1), minlength=3) / count
    assert torch.allclose(shares, torch.tensor([q**2, 2 * q * (1 - q), (1 - q) ** 2]), atol=0.02)


def test_sample_level_draws_per_row(make_federation):
    fed = make_federation(rows=4000, clients=3)
    task = with_missing(fed, 0.3, level="sample").tasks[0]
    train = task.present[task.is_train]
    incomplete = (train.sum(dim=1) < 2).float().mean()
    assert (train.sum(dim=1) >= 1).all()
    assert abs(float(incomplete) - 0.3) < 0.04
    assert all(len(client.modalities) == 2 for client in with_missing(fed, 0.3, level="sample").clients)


@pytest.mark.parametrize("level", ["client", "sample"])
def test_uni_modal_tasks_lose_nothing_by_the_subset_rule(make_federation, level):
    fed = make_federation(modalities=1)
    assert with_missing(fed, 1.0, level=level).tasks[0].present.all()
    task = with_missing(fed, 1.0, level=level, rule="independent").tasks[0]
    assert not task.present[task.is_train].any()


def test_only_held_modalities_are_drawn_from():
    rows = 300
    x = np.ones((rows, 1))
    held = np.ones((rows, 3), dtype=bool)
    held[:, 1] = False
    fed = from_arrays(
        {"a": x, "b": x, "c": x}, np.zeros(rows, int), np.arange(rows), np.full(rows, "train"), present=held
    )
    for level in ("client", "sample"):
        present = with_missing(fed, 1.0, level=level).tasks[0].present
        assert (present.sum(dim=1) == 1).all()
        assert not present[:, 1].any()
        assert present[:, 0].any()
        assert present[:, 2].any()


def test_client_modalities_follow_the_mask(make_federation):
    thin = with_missing(make_federation(clients=20), 0.8)
    kept = {client.modalities for client in thin.clients}
    assert kept == {("m0",), ("m1",), ("m0", "m1")}


def one_row_each(count, modalities):
    x = np.ones((count, 1))
    inputs = dict.fromkeys(modalities, x)
    return from_arrays(inputs, np.zeros(count, int), np.arange(count), np.full(count, "train"), name="one")


@pytest.mark.parametrize("level", ["client", "sample"])
def test_a_rate_for_each_client(make_federation, level):
    fed = merge([make_federation(name=name, clients=4, modalities=3) for name in ("a", "b")])
    rates = [0.0, 1.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.7]
    by_place = with_missing(fed, rates, level)
    by_name = with_missing(
        fed, {c.name: q for c, q in zip(fed.clients, rates, strict=True) if q}, level, spread=0.0
    )
    for one, other in zip(by_place.tasks, by_name.tasks, strict=True):
        assert torch.equal(one.present, other.present)
    for client, q in zip(by_place.clients, rates, strict=True):
        complete = client.task.present[client.train_rows].all(dim=1)
        if q in (0, 1):
            assert (complete == (q == 0)).all()
    # Who has the rate 0.5 or 0.7 fares as if all had it.
    for k, q in ((2, 0.5), (7, 0.7)):
        alike = with_missing(fed, q, level).clients[k]
        mine = by_place.clients[k]
        assert torch.equal(mine.task.present[mine.train_rows], alike.task.present[alike.train_rows])


def test_rates_by_modality_one_by_one():
    count = 4000
    fed = one_row_each(count, "abc")
    present = with_missing(fed, {"a": 0.9, "c": 0.3}, rule="independent").tasks[0].present.double()
    assert present.mean(dim=0).tolist() == pytest.approx([0.1, 1.0, 0.7], abs=0.03)
    assert float((present[:, 0] * present[:, 2]).mean()) == pytest.approx(0.07, abs=0.02)


def test_rates_by_modality_leave_one():
    count = 6000
    fed = one_row_each(count, "abc")
    present = with_missing(fed, {"a": 0.9, "b": 1.0, "c": 0.3}).tasks[0].present.double()
    assert (present.sum(dim=1) >= 1).all()
    # One of three remains for certain, and the others are lost at their rates.
    expected = [1 - 2 / 3 * q for q in (0.9, 1.0, 0.3)]
    assert present.mean(dim=0).tolist() == pytest.approx(expected, abs=0.03)


def test_two_modalities_of_one_rate_are_the_subset_rule_in_distribution():
    fed = one_row_each(6000, "ab")
    for rates in (0.8, {"a": 0.8, "b": 0.8}):
        present = with_missing(fed, rates).tasks[0].present
        code = (present * torch.tensor([1, 2])).sum(dim=1)
        shares = torch.bincount(code, minlength=4) / len(present)
        assert shares.tolist() == pytest.approx([0, 0.4, 0.4, 0.2], abs=0.025)


def test_what_a_client_never_had_is_not_what_remains(make_federation):
    rows = 60
    x = np.ones((rows, 1))
    held = np.ones((rows, 3), dtype=bool)
    held[:, 1] = False
    fed = from_arrays(dict.fromkeys("abc", x), np.zeros(rows, int), np.arange(rows), present=held)
    present = with_missing(fed, dict.fromkeys("abc", 1.0), parts=("train", "test")).tasks[0].present
    assert (present.sum(dim=1) == 1).all()


def test_spread_keeps_the_mean_and_has_the_deviation_told():
    fed = one_row_each(4000, "ab")
    for q, spread in ((0.8, 0.3), (0.5, 0.9), (0.1, 0.5)):
        (rates,) = missing_rates(fed, "rate", q, spread, 0).of_tasks
        assert ((rates >= 0) & (rates <= 1)).all()
        assert (rates[:, 0] == rates[:, 1]).all()
        assert rates.mean() == pytest.approx(q, abs=0.03)
        assert rates.std() == pytest.approx(spread * np.sqrt(q * (1 - q)), abs=0.02)
    for q in (0.0, 1.0):
        (rates,) = missing_rates(fed, "rate", q, 0.5, 0).of_tasks
        assert (rates == q).all()


@pytest.mark.parametrize("level", ["client", "sample"])
@pytest.mark.parametrize("rule", ["subset", "independent"])
@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_larger_rates_only_add_also_by_modality_and_with_spread(make_federation, level, rule, spread):
    fed = make_federation(rows=1500, clients=50, modalities=3)
    steps = [(0.1, 0.0, 0.9), (0.4, 0.0, 0.9), (0.4, 0.8, 0.95), (1.0, 1.0, 1.0)]
    by_modality = [{f"m{j}": q for j, q in enumerate(step)} for step in steps]
    for rates in (by_modality, [step[0] for step in steps]):
        masks = [with_missing(fed, q, level, 0, rule, spread=spread).tasks[0].present for q in rates]
        for fuller, thinner in itertools.pairwise(masks):
            assert (thinner <= fuller).all()
        assert not torch.equal(masks[0], masks[-1])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_counted_rows_lose_one_of_two_in_halves(make_federation, rate):
    fed = make_federation(rows=601)
    present = with_missing(fed, rate, "sample", rule="count").tasks[0].present
    trained = fed.tasks[0].is_train
    assert present[~trained].all()
    lost = (~present[trained]).sum(dim=0).tolist()
    incomplete = int(rate * int(trained.sum()))
    assert lost == [incomplete - incomplete // 2, incomplete // 2]
    assert present.any(dim=1).all()


def test_the_count_is_over_all_clients_whenever_they_are_dealt(make_federation):
    fed = make_federation(rows=900)
    after = with_missing(dirichlet(fed, 12, 0.1), 0.5, "sample", rule="count").tasks[0].present
    assert torch.equal(after, with_missing(fed, 0.5, "sample", rule="count").tasks[0].present)
    masks = [with_missing(fed, q, "sample", rule="count").tasks[0].present for q in (0.2, 0.5, 0.8)]
    assert all((thinner <= fuller).all() for fuller, thinner in itertools.pairwise(masks))


def test_counted_test_rows_have_a_rate_of_their_own(make_federation):
    fed = make_federation(rows=600, modalities=3)
    task = with_missing(fed, 0.5, "sample", rule="count", test_rate=0.8).tasks[0]
    for rows, rate in ((task.is_train, 0.5), (~task.is_train, 0.8)):
        lost = ~task.present[rows]
        assert int(lost.sum()) == int(lost.any(dim=1).sum()) == int(rate * int(rows.sum()))
        assert lost.sum(dim=0).max() - lost.sum(dim=0).min() <= 1


def test_counted_rows_that_already_lack_something(make_federation):
    fed = with_missing(make_federation(rows=600, modalities=3), 0.6, "sample", rule="independent")
    held = fed.tasks[0].present.sum(dim=1)
    able = fed.tasks[0].is_train & (held > 1)
    thin = with_missing(fed, 1.0, "sample", rule="count").tasks[0].present.sum(dim=1)
    assert torch.equal(thin, held - able.long())


def test_spread_makes_rates_of_clients_and_zero_changes_nothing(make_federation):
    fed = make_federation(rows=3000, clients=10)
    plain = with_missing(fed, 0.5, "sample").tasks[0].present
    assert torch.equal(plain, with_missing(fed, 0.5, "sample", spread=0.0).tasks[0].present)
    uneven = with_missing(fed, 0.5, "sample", spread=0.8)
    (rates,) = missing_rates(fed, "rate", 0.5, 0.8, 0).of_tasks
    for client, q in zip(uneven.clients, rates[:, 0], strict=True):
        incomplete = 1 - client.task.present[client.train_rows].all(dim=1).double().mean()
        assert float(incomplete) == pytest.approx(q, abs=0.12)


@pytest.mark.parametrize("rule", ["subset", "independent"])
def test_test_rows_lose_at_their_own_rate_and_by_the_same_draw(make_federation, rule):
    fed = make_federation(rows=2000, clients=40, modalities=3)
    thin = with_missing(fed, 0.8, rule=rule, test_rate=0.3)
    train, test = lost_by_client(fed, thin), lost_by_client(fed, thin, "test_rows")
    assert torch.equal(train, lost_by_client(fed, with_missing(fed, 0.8, rule=rule)))
    both = with_missing(fed, 0.3, rule=rule, parts=("train", "test"))
    assert torch.equal(test, lost_by_client(fed, both, "test_rows"))
    assert (test <= train).all()
    assert not torch.equal(test, train)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": 1.5}, ValueError, r"rate must lie in \[0, 1\], got 1.5"),
        ({"rate": float("nan")}, ValueError, "rate must lie in"),
        ({"rate": "0.5"}, TypeError, "rate must be a number, got '0.5'"),
        ({"level": "clients"}, ValueError, "unknown level 'clients'; did you mean 'client'"),
        ({"rule": "bernoulli"}, ValueError, "unknown rule 'bernoulli'; valid: subset, independent, count"),
        ({"rule": "count"}, ValueError, "rule 'count' needs level 'sample', got 'client'"),
        (
            {"rule": "count", "level": "sample", "spread": 0.5},
            ValueError,
            "rule 'count' takes no spread, got 0.5",
        ),
        (
            {"rule": "count", "level": "sample", "rate": {"m0": 0.5}},
            ValueError,
            "rule 'count' takes one number as rate, got {'m0': 0.5}",
        ),
        (
            {"rule": "count", "level": "sample", "test_rate": [0.5] * 7},
            ValueError,
            "rule 'count' takes one number as test_rate, got",
        ),
        ({"parts": "train"}, TypeError, "parts must be a sequence .* got the string 'train'"),
        ({"parts": None}, TypeError, "parts must be a sequence .* got None"),
        ({"parts": ("train", "val")}, ValueError, "unknown part 'val'"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"spread": 1}, ValueError, "spread must be below 1, got 1"),
        ({"spread": -0.1}, ValueError, r"spread must lie in \[0, 1\], got -0.1"),
        ({"test_rate": 2}, ValueError, r"test_rate must lie in \[0, 1\], got 2"),
        ({"rate": [0.5, 0.5]}, ValueError, "rate needs one number for each of 7 clients, got 2"),
        ({"rate": [0.5] * 6 + [3]}, ValueError, r"rate\[6\] must lie in \[0, 1\], got 3"),
        ({"rate": {"m0": "much"}}, TypeError, r"rate\['m0'\] must be a number, got 'much'"),
        (
            {"rate": {"m1x": 0.5}},
            ValueError,
            "rate names 'm1x', which is neither a modality nor a client; did you mean 'm1'",
        ),
        (
            {"rate": {"m0": 0.5, "toy/1": 0.5}},
            ValueError,
            "either modalities or clients, got both: m0, toy/1",
        ),
    ],
)
def test_wrong_arguments_are_named(make_federation, arguments, error, message):
    with pytest.raises(error, match=message):
        with_missing(make_federation(rows=20), **{"rate": 0.5, **arguments})
