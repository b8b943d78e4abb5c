from dataclasses import replace

import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.algorithms.server_items import class_draws, server_items, training_rows
from mmfl_fast.federation.standardisation import standardise

SMALL = {"width": 8, "batch_size": 8, "local_epochs": 1, "learning_rate": 0.01}


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def with_items(pairs):
    """The same, with nine items of the server's own."""
    (task,) = pairs.tasks
    rng = torch.Generator().manual_seed(1)
    items = {m: 3 + 2 * torch.randn(9, *x.shape[1:], generator=rng) for m, x in task.inputs.items()}
    return replace(pairs, tasks=(replace(task, server_items=items),))


def test_training_rows_are_spread_over_the_classes(pairs):
    task = pairs.tasks[0]
    items = training_rows(task, 10, generator())
    assert items["image"].shape == (10, 3, 6)
    rows = [int((task.inputs["image"] == x).all(dim=(1, 2)).nonzero()) for x in items["image"]]
    assert len(set(rows)) == 10
    assert all(bool(task.is_train[r]) for r in rows)
    assert sorted(np.bincount(task.labels[rows].numpy()).tolist()) == [3, 3, 4]
    assert torch.equal(items["text"], task.inputs["text"][rows])
    assert len(training_rows(task, 10**6, generator())["text"]) == int(task.is_train.sum())


def test_training_rows_of_a_task_without_a_complete_one(pairs):
    thinned = data.with_missing(pairs, rate=1.0, level="sample", seed=0).tasks[0]
    items = training_rows(thinned, 9, generator())
    there = torch.stack([x.flatten(1).any(dim=1) for x in items.values()])
    assert (there.sum(dim=0) == 1).all()


def test_draws_have_mean_and_spread_of_their_class(pairs):
    task = pairs.tasks[0]
    items = class_draws(task, 6000, generator())
    for name, x in task.inputs.items():
        for label in range(3):
            # Class by class in turns.
            drawn = items[name][label::3]
            own = x[task.is_train & (task.labels == label)]
            torch.testing.assert_close(drawn.mean(dim=0), own.mean(dim=0), atol=0.15, rtol=0)
            spread = own.std(dim=0, correction=0)
            torch.testing.assert_close(drawn.std(dim=0), spread, atol=0.1, rtol=0)
    # No item is a row.
    assert torch.cdist(items["text"], task.inputs["text"]).min() > 0


def test_draws_know_no_more_of_the_rows_than_moments_of_their_class(pairs):
    task = pairs.tasks[0]
    moved = {}
    for name, x in task.inputs.items():
        # Mirrored at the means: other rows of the same mean and spread. Test rows have no part at all.
        means = torch.stack([x[task.is_train & (task.labels == c)].mean(dim=0) for c in range(3)])
        trained = task.is_train.view(-1, *[1] * (x.dim() - 1))
        moved[name] = torch.where(trained, 2 * means[task.labels] - x, 7.0)
    other = class_draws(replace(task, inputs=moved), 20, generator())
    for name, x in class_draws(task, 20, generator()).items():
        assert not torch.equal(moved[name], task.inputs[name])
        torch.testing.assert_close(x, other[name], atol=1e-5, rtol=1e-5)


def test_draws_of_a_class_that_never_has_a_modality(pairs):
    (task,) = pairs.tasks
    present = task.present.clone()
    present[task.labels == 1, 1] = False
    text = task.inputs["text"] * present[:, 1:]
    items = class_draws(replace(task, inputs={**task.inputs, "text": text}, present=present), 9, generator())
    assert (items["text"].any(dim=1)).tolist() == [True, False, True] * 3
    assert items["image"].flatten(1).any(dim=1).all()
    # Who never trains is in no class.
    held_out = replace(task, is_train=task.is_train & (task.labels != 0))
    torch.testing.assert_close(
        class_draws(held_out, 4000, generator())["image"].mean(),
        task.inputs["image"][held_out.is_train].mean(),
        atol=0.1,
        rtol=0,
    )
    nobody = class_draws(replace(task, is_train=torch.zeros_like(task.is_train)), 5, generator())
    assert not any(x.any() for x in nobody.values())


def test_the_source_is_chosen_by_name(pairs, with_items):
    (plain,), (made,) = pairs.tasks, with_items.tasks
    assert all(torch.equal(x, made.server_items[m]) for m, x in chosen(made, "prompts", 100).items())
    assert all(torch.equal(x, made.server_items[m][:4]) for m, x in chosen(made, "auto", 4).items())
    for source, expected in (("rows", training_rows), ("moments", class_draws)):
        for task in (plain, made):
            right = expected(task, 8, generator())
            assert all(torch.equal(x, right[m]) for m, x in chosen(task, source, 8).items())
    rows = training_rows(plain, 8, generator())
    assert all(torch.equal(x, rows[m]) for m, x in chosen(plain, "auto", 8).items())
    with pytest.raises(ValueError, match="items_from 'prompts': task 'pairs' has no items made from prompts"):
        chosen(plain, "prompts", 8)


def chosen(task, source, count):
    return server_items(task, source, count, generator())


@pytest.mark.parametrize("source", ["auto", "prompts", "moments", "rows"])
def test_fedmvp_compares_its_clients_on_them(with_items, source, tmp_path):
    config = {**SMALL, "items_from": source, "items": 8}
    result = mf.run(with_items, "fedmvp", rounds=1, config=config, out=tmp_path / "run")
    (task,) = standardise(with_items).tasks
    found = result.state.items[0]
    assert {m: tuple(x.shape) for m, x in found.items()} == {"image": (8, 3, 6), "text": (8, 5)}
    for name, x in found.items():
        from_prompts = torch.equal(x, task.server_items[name][:8])
        assert from_prompts == (source in ("auto", "prompts"))
    assert 0 < float(result.state.cka[0, 1]) <= 1


def test_a_run_without_the_items_it_is_to_use(pairs):
    with pytest.raises(ValueError, match="items_from 'prompts': task 'pairs' has no items made from prompts"):
        mf.run(pairs, "fedmvp", rounds=1, config={**SMALL, "items_from": "prompts"})
    with pytest.raises(ValueError, match="items_from"):
        mf.run(pairs, "fedmvp", rounds=1, config={**SMALL, "items_from": "prompt"})
