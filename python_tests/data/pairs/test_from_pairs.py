import numpy as np
import pytest
import torch

from mmfl_fast import data
from mmfl_fast.data.assemble import capped
from mmfl_fast.data.dataset import CorruptDataError
from mmfl_fast.data.pairs.model_folder import MissingModelError
from mmfl_fast.data.pairs.picture import Picture

COLOURS = ("red", "blue")


@pytest.fixture
def make(pictures, own_cache):
    """Ten pairs of two clients; the first of each class lacks its image, the second its text."""

    def of(**changes):
        images = [*pictures, *pictures]
        captions = [f"a {COLOURS[k % 2]} bird {k}" for k in range(10)]
        images[0] = images[1] = captions[2] = captions[3] = None
        arguments = {
            "images": images,
            "captions": captions,
            "labels": np.arange(10) % 2,
            "clients": np.arange(10) // 5,
            "split": ["train"] * 8 + ["test"] * 2,
            "name": "birds",
            "classes": COLOURS,
            "subject": "bird",
        }
        return data.from_pairs(**{**arguments, **changes})

    return of


def test_features_and_raw_pairs_side_by_side(make, pictures):
    fed = make()
    (task,) = fed.tasks
    assert {m: tuple(x.shape) for m, x in task.inputs.items()} == {"image": (10, 16, 192), "text": (10, 512)}
    assert task.present.tolist() == [[False, True]] * 2 + [[True, False]] * 2 + [[True, True]] * 6
    for m, x in enumerate(task.inputs.values()):
        assert torch.equal(x.flatten(1).any(dim=1), task.present[:, m])
    assert torch.equal(task.inputs["image"][4], task.inputs["image"][9])
    assert len(task.raw.pairs) == 10
    assert task.raw.pairs.categories[:3] == ("red", "blue", "red")
    assert task.raw.pairs.pictures[5] == pictures[0]
    assert repr(task.raw.pairs) == "ImageTextPairs: 10 of birds, 8 images, 8 captions"
    assert [c.num_train for c in fed.clients] == [5, 3]


def test_frozen_models_by_option(make, models):
    options = {"image_encoder": str(models("clip")), "text_encoder": str(models("bert")), "text_length": 8}
    pooled = make(**options).tasks[0].inputs
    assert {m: tuple(x.shape) for m, x in pooled.items()} == {"image": (10, 8), "text": (10, 16)}
    tokens = make(**options, features="tokens").tasks[0].inputs
    assert {m: tuple(x.shape) for m, x in tokens.items()} == {"image": (10, 5, 16), "text": (10, 8, 16)}
    rough = make(**options, features="tokens", dtype="bfloat16").tasks[0].inputs
    for m, x in tokens.items():
        assert rough[m].dtype == torch.float32
        assert 0 < float((rough[m] - x).norm() / x.norm()) < 0.02


def test_what_is_taken_away_is_gone_from_the_raw_pairs_too(make):
    whole = make()
    for fed in (data.with_missing(whole, 0.5, "sample"), data.with_missing(whole, {"image": 1.0})):
        (task,) = fed.tasks
        assert not torch.equal(task.present, whole.tasks[0].present)
        assert np.array_equal(task.raw.pairs.present(), task.present.numpy())
    assert np.array_equal(whole.tasks[0].raw.pairs.present(), whole.tasks[0].present.numpy())


def test_the_raw_pairs_stay_with_their_rows(make):
    fed = data.with_missing(make(), 0.5, "sample")
    few = capped(data.dirichlet(fed, clients=2, alpha=10.0), 4, seed=0)
    for task in (data.merge([few]).tasks[0], few.tasks[0]):
        assert len(task.raw.pairs) == task.num_samples < 10
        for side, x in task.raw.inputs().items():
            assert np.array_equal(x, task.inputs[side].numpy())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"captions": ["a bird", " \n"] * 5}, ValueError, r"captions\[1\], of 1.png is empty; .* is None"),
        ({"captions": ["a bird", 3] * 5}, TypeError, r"captions\[1\] must be a string or None, got 3"),
        ({"captions": ["a bird"] * 9}, ValueError, "captions has 9 rows, but images has 10"),
        (
            {"images": [np.zeros((8, 8, 3))] * 10},
            TypeError,
            r"images\[0\] must be a file .* got ndarray",
        ),
        ({"classes": "red"}, TypeError, "classes must be a sequence of the classes' names, got 'red'"),
        ({"classes": ["red", 2]}, TypeError, "classes must be a sequence of the classes' names"),
        ({"subject": ""}, TypeError, "subject must be a non-empty string, got ''"),
        ({"medium": 3}, TypeError, "medium must be a non-empty string, got 3"),
        ({"images": [None] * 10}, ValueError, "no pair has its image"),
        ({"images": [Picture("x.png", b"P")] * 10}, CorruptDataError, "x.png is not a readable image"),
        ({"image_encoder": "no/model"}, MissingModelError, "image_encoder: there is no model 'no/model'"),
        ({"text_encoder": "no model"}, MissingModelError, "text_encoder: there is no model 'no model'"),
        ({"text_encoder": None}, TypeError, "text_encoder must name a model"),
        ({"features": "patches"}, ValueError, "unknown features 'patches'"),
        ({"dtype": "float16"}, ValueError, "unknown dtype 'float16'"),
        ({"text_length": 0}, ValueError, "text_length must be >= 1, got 0"),
        ({"labels": np.arange(10) % 3}, ValueError, "classes has 2 names, but labels reach 2"),
    ],
)
def test_what_it_refuses(make, pictures, changes, error, message):
    with pytest.raises(error, match=message):
        make(**{"images": [*pictures, *pictures], **changes})
