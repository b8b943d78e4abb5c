import dataclasses

import numpy as np
import torch

from mmfl_fast import data
from mmfl_fast.data import Federation
from mmfl_fast.federation.standardisation import standardise


def build(x, split=None, present=None):
    n = len(x)
    return data.from_arrays(
        {"x": x, "y": np.ones((n, 2))}, np.zeros(n, int), np.zeros(n, int), split=split, present=present
    )


def test_training_rows_get_zero_mean_and_unit_scale():
    x = np.random.default_rng(0).normal(5.0, [1.0, 100.0, 30.0], size=(400, 3))
    split = np.where(np.arange(400) < 300, "train", "test")
    out = standardise(build(x, split)).tasks[0].inputs["x"]
    train = out[:300]
    torch.testing.assert_close(train.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train[:, 1:].std(0, unbiased=False), torch.ones(2), atol=1e-5, rtol=0)
    assert train[:, 0].std() < 0.5, "a feature that hardly moves keeps its smallness"
    shifted = build(np.where((np.arange(400) < 300)[:, None], x, x + 1000.0), split)
    assert torch.equal(standardise(shifted).tasks[0].inputs["x"][:300], train), "test rows must not count"


def test_constant_features_become_zero():
    out = standardise(build(np.full((10, 3), 7.0))).tasks[0].inputs["x"]
    assert torch.equal(out, torch.zeros(10, 3))


def test_absent_modalities_stay_zero_and_do_not_count():
    federation = build(np.random.default_rng(0).normal(5.0, 1.0, size=(50, 3)))
    task = federation.tasks[0]
    present = task.present.clone()
    present[::2, 0] = False
    x = task.inputs["x"].clone()
    x[::2] = 0
    masked = Federation("f", (dataclasses.replace(task, inputs={**task.inputs, "x": x}, present=present),))
    out = standardise(masked).tasks[0]
    assert (out.inputs["x"][::2] == 0).all()
    kept = out.inputs["x"][(present[:, 0]) & task.is_train]
    torch.testing.assert_close(kept.mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_the_servers_items_get_the_scale_of_the_rows():
    federation = build(np.random.default_rng(0).normal(5.0, [1.0, 100.0, 30.0], size=(40, 3)))
    (task,) = federation.tasks
    items = {m: torch.cat([x[:7], torch.full_like(x[:1], 1e6)]) for m, x in task.inputs.items()}
    found = standardise(Federation("f", (dataclasses.replace(task, server_items=items),))).tasks[0]
    for name, x in standardise(federation).tasks[0].inputs.items():
        assert torch.equal(found.inputs[name], x), "items must not count"
        assert torch.equal(found.server_items[name][:7], x[:7])
