"""The server's own items, by models that answer at once; test_experiment.py has them by real libraries."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmfl_fast import data
from mmfl_fast.data import PairGenerator
from mmfl_fast.data.pairs.captioner import Captioner
from mmfl_fast.data.pairs.painter import Painter

CLASSES = ("Gull", "Tern", "Auk")
PROMPTS = [f"a photo of {name}, a kind of bird" for name in CLASSES]


@pytest.fixture
def said(own_cache, monkeypatch):
    """What the models were asked, batch by batch."""
    asked = {"painter": [], "captioner": []}

    def paint(prompts, seeds):
        asked["painter"].append(list(prompts))
        return [drawn(f"{p} {s}") for p, s in zip(prompts, seeds, strict=True)]

    def describe(pictures, subject, medium):
        asked["captioner"].append(list(pictures))
        return [f"{subject}, {medium}: shade {p.rgb().getpixel((0, 0))}" for p in pictures]

    monkeypatch.setattr(Painter, "load", lambda _: paint)
    monkeypatch.setattr(Captioner, "load", lambda _: describe)
    return asked


def drawn(words):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(hashlib.sha256(words.encode()).digest()[:3])).save(content, "png")
    return content.getvalue()


@pytest.fixture
def generator(tmp_path):
    (tmp_path / "model").mkdir()
    model = str(tmp_path / "model")
    return PairGenerator(text_to_image=model, captioner=model, batch_size=2)


@pytest.fixture
def fed(pictures, own_cache):
    """Fifteen pairs of three clients."""
    captions = [f"a bird number {k}" for k in range(15)]
    labels, owners = np.arange(15) % 3, np.arange(15) // 5
    return data.from_pairs(pictures * 3, captions, labels, owners, classes=CLASSES, subject="bird")


class Unread:
    """Raw pairs that nobody may look at; what all of them are is no row's."""

    subject, medium = "bird", "photo"

    def __getattr__(self, name):
        pytest.fail(f"the {name} of the clients' pairs were read")


def test_class_by_class_from_names_alone(fed, generator, said):
    (task,) = fed.tasks
    none = dict.fromkeys(("inputs", "present", "labels", "owner", "is_train"))
    blind = replace(task, **none, raw=replace(task.raw, pairs=Unread()))
    (made,) = data.with_server_items(replace(fed, tasks=(blind,)), generator, count=7).tasks
    assert [p for batch in said["painter"] for p in batch] == [*PROMPTS, *PROMPTS, PROMPTS[0]]
    seen = [p for batch in said["captioner"] for p in batch]
    images = task.raw.image_encoder.load()(seen)
    captions = [f"bird, photo: shade {p.rgb().getpixel((0, 0))}" for p in seen]
    assert torch.equal(made.server_items["image"], torch.from_numpy(images))
    assert torch.equal(made.server_items["text"], torch.from_numpy(task.raw.text_encoder.load()(captions)))
    assert len(made.server_items["image"].flatten(1).unique(dim=0)) == 7


def test_rows_keep_what_they_have(fed, generator, said):
    (task,) = fed.tasks
    (made,) = data.with_server_items(fed, generator, count=3).tasks
    assert not task.server_items
    assert replace(made, server_items=task.server_items).__dict__ == task.__dict__
    (thinned,) = data.with_missing(replace(fed, tasks=(made,)), {"image": 1.0}).tasks
    assert thinned.server_items == made.server_items


def test_one_seed_makes_the_same_items(fed, generator, said, tmp_path, monkeypatch):
    def items(**options):
        return data.with_server_items(fed, generator, **options).tasks[0].server_items

    first = items(count=4, seed=1)
    monkeypatch.setenv("MMFL_CACHE", str(tmp_path / "elsewhere"))
    again, other = items(count=4, seed=1), items(count=4, seed=2)
    for side in ("image", "text"):
        assert torch.equal(first[side], again[side])
        assert not torch.equal(first[side], other[side])
    said["painter"].clear()
    said["captioner"].clear()
    assert torch.equal(items(count=4, seed=1)["image"], first["image"])
    assert said == {"painter": [], "captioner": []}
    # More of them begin with the same.
    assert torch.equal(items(count=6, seed=1)["text"][:4], first["text"])
    assert said["painter"] == [[PROMPTS[1], PROMPTS[2]]]


@pytest.mark.parametrize("model", [Painter, Captioner])
def test_a_kill_loses_one_batch(fed, generator, said, own_cache, monkeypatch, model):
    whole = model.load(None)
    done = []

    def killed(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[0])
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model, "load", lambda _: killed)
        with pytest.raises(KeyboardInterrupt):
            data.with_server_items(fed, generator, count=9)
    assert not list(own_cache.rglob("*.draft"))
    data.with_server_items(fed, generator, count=9)
    for calls in said.values():
        assert sum(map(len, calls)) == 9


def test_what_it_refuses(fed, generator, said, toy_federation):
    for option in ("text_to_image", "captioner"):
        told = rf"8 server_items are to be made from the names of 3 classes; {option} must name a"
        with pytest.raises(ValueError, match=told):
            data.with_server_items(fed, replace(generator, **{option: None}), count=8)
    with pytest.raises(ValueError, match="task 'toy' has no raw image-text pairs"):
        data.with_server_items(toy_federation, generator)
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        data.with_server_items(fed, generator, count=0)
    with pytest.raises(TypeError, match="seed must be an integer >= 0, got 'x'"):
        data.with_server_items(fed, generator, seed="x")
    nameless = replace(fed.tasks[0], raw=replace(fed.tasks[0].raw, classes=("Gull", " ", "Auk")))
    with pytest.raises(ValueError, match=r"classes\[1\] has no name, of which a prompt is made; got ' '"):
        data.with_server_items(replace(fed, tasks=(nameless,)), generator)
    assert said == {"painter": [], "captioner": []}
