from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

import mmfl_fast.data as data
from mmfl_fast.data.sources.wikipedia import WIKIPEDIA


def test_the_published_layout(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"I_tr": (3, 128), "I_te": (2, 128), "T_tr": (3, 10), "T_te": (2, 10)}
    matrices = {name: rng.random(shape) for name, shape in shapes.items()}
    savemat(tmp_path / "raw_features.mat", matrices)
    (tmp_path / "trainset_txt_img_cat.list").write_text("a-1\tp\t6\nb-2.1\tq\t10\nc-3\tr\t1\n")
    (tmp_path / "testset_txt_img_cat.list").write_text("d-1\ts\t2\ne-2\tt\t9\n")
    features = WIKIPEDIA.extract({file.name: tmp_path / file.name for file in WIKIPEDIA.files})
    assert features.labels.tolist() == [5, 9, 0, 1, 8]
    assert features.is_train.tolist() == [True, True, True, False, False]
    for modality, letter in (("image", "I"), ("text", "T")):
        expected = np.concatenate([matrices[f"{letter}_tr"], matrices[f"{letter}_te"]])
        assert np.array_equal(features.inputs[modality], expected.astype(np.float32))


@pytest.fixture(scope="module")
def root(real_data):
    return real_data("wikipedia")


def test_documents_and_published_split(root):
    fed = data.load("wikipedia", root=root)
    (task,) = fed.tasks
    assert {m: tuple(x.shape) for m, x in task.inputs.items()} == {"image": (2866, 128), "text": (2866, 10)}
    assert data.check("wikipedia", root) == []
    counts = [torch.bincount(task.labels[side]).tolist() for side in (task.is_train, ~task.is_train)]
    assert counts == [
        [138, 272, 244, 248, 202, 178, 186, 144, 214, 347],
        [34, 88, 96, 85, 65, 58, 51, 41, 71, 104],
    ]
    matrices = loadmat(root / "wikipedia_image_text" / "raw_features.mat")
    assert np.array_equal(task.inputs["text"][~task.is_train], matrices["T_te"].astype(np.float32))
    # Both are distributions, over visual words and over topics.
    for x in task.inputs.values():
        assert x.sum(dim=1).numpy() == pytest.approx(np.ones(2866), abs=1e-4)
    assert len(fed.clients) == 10
    assert all(c.num_train >= 2 and len(c.test_rows) for c in fed.clients)


def test_pooled_split_partition_and_cap(root):
    task = data.load("wikipedia", root=root, split="random", clients=25, alpha=0.4, seed=2).tasks[0]
    assert len(task.client_names) == 25
    totals = torch.bincount(task.labels)
    assert totals.tolist() == list(WIKIPEDIA.classes.values())
    tested = torch.bincount(task.labels[~task.is_train])
    assert tested.tolist() == [round(0.2 * n) for n in totals.tolist()]
    other = data.load("wikipedia", root=root, split="random", clients=25, alpha=0.4, seed=3).tasks[0]
    assert not torch.equal(task.is_train, other.is_train)
    few = data.load("wikipedia", root=root, samples_per_client=30)
    assert all(c.num_train + len(c.test_rows) <= 30 for c in few.clients)
    with pytest.raises(ValueError, match="unknown split 'time'; valid: published, random"):
        data.load("wikipedia", root=root, split="time")
