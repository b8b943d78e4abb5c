"""The generator with models that answer at once; the real libraries have their test beside this one."""

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
from mmfl_fast.data.pairs.image_text import ImageTextPairs
from mmfl_fast.data.pairs.painter import Painter
from mmfl_fast.data.pairs.picture import Picture


def painted(prompt, seed):
    colour = tuple(hashlib.sha256(f"{prompt} {seed}".encode()).digest()[:3])
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, "png")
    return content.getvalue()


def told(picture, subject, medium):
    return f"{subject}, {medium}: shade {picture.rgb().getpixel((0, 0))[0]}"


@pytest.fixture
def said(own_cache, monkeypatch):
    """What the models were asked, batch by batch."""
    asked = {"painter": [], "captioner": []}

    def paint(prompts, seeds):
        asked["painter"].append(list(prompts))
        return [painted(p, s) for p, s in zip(prompts, seeds, strict=True)]

    def describe(pictures, subject, medium):
        asked["captioner"].append(list(pictures))
        return [told(p, subject, medium) for p in pictures]

    monkeypatch.setattr(Painter, "load", lambda _: paint)
    monkeypatch.setattr(Captioner, "load", lambda _: describe)
    return asked


@pytest.fixture
def generator(tmp_path):
    (tmp_path / "model").mkdir()
    return PairGenerator(text_to_image=str(tmp_path / "model"), captioner=str(tmp_path / "model"))


def pairs_federation(hidden=None, clients=3):
    """Thirty pairs; where ``hidden`` says so, bool ``[30, 2]``, the content is another one."""
    hidden = np.zeros((30, 2), bool) if hidden is None else hidden
    images = [Picture(f"{k}.png", painted("other" if hidden[k, 0] else "true", k)) for k in range(30)]
    captions = [f"{'no' if hidden[k, 1] else 'a'} bird number {k}" for k in range(30)]
    return data.from_pairs(
        images,
        captions,
        np.arange(30) % 2,
        np.arange(30) % clients,
        ["test" if k % 5 == 4 else "train" for k in range(30)],
        "birds",
        classes=("Gull", "Tern"),
        subject="bird",
    )


@pytest.fixture
def thinned(said):
    return data.with_missing(pairs_federation(), 0.7, "sample", seed=0, parts=("train", "test"))


def test_both_sides_of_training_rows_are_made_and_encoded(thinned, generator, said):
    (task,), (before,) = data.complete(thinned, "generator", generator=generator).tasks, thinned.tasks
    train = before.is_train
    assert task.present[train].all()
    assert torch.equal(task.present[~train], before.present[~train])
    assert np.array_equal(task.raw.pairs.present(), task.present.numpy())
    made = ~before.present & train[:, None]
    assert made.any(dim=0).all()
    for m, (name, x) in enumerate(task.inputs.items()):
        assert torch.equal(x[~made[:, m]], before.inputs[name][~made[:, m]])
        again = task.raw.inputs()[name]
        assert np.array_equal(x.numpy(), again)
    row = int(made[:, 1].nonzero()[0])
    assert task.raw.pairs.captions[row] == told(before.raw.pairs.pictures[row], "bird", "photo")
    prompts = [p for batch in said["painter"] for p in batch]
    first = int(made[:, 0].nonzero()[0])
    assert (
        prompts[0] == f"a photo of {'Tern' if first % 2 else 'Gull'}, a kind of bird. a bird number {first}"
    )
    assert len(prompts) == int(made[:, 0].sum())
    assert max(map(len, said["painter"] + said["captioner"])) <= 8


def test_it_never_reads_the_side_that_it_makes(thinned, generator):
    (task,) = data.complete(thinned, "generator", generator=generator).tasks
    hidden = (~thinned.tasks[0].present).numpy()
    # The draw of what is missing does not depend on the contents.
    other = data.with_missing(pairs_federation(hidden), 0.7, "sample", seed=0, parts=("train", "test"))
    assert np.array_equal((~other.tasks[0].present).numpy(), hidden)
    (changed,) = data.complete(other, "generator", generator=generator).tasks
    # Nor if someone has put the hidden side back into the raw pairs alone.
    leaky = replace(thinned.tasks[0], raw=pairs_federation(hidden).tasks[0].raw)
    (leaked,) = data.complete(replace(thinned, tasks=(leaky,)), "generator", generator=generator).tasks
    for side in ("image", "text"):
        assert torch.equal(task.inputs[side], changed.inputs[side])
        assert torch.equal(task.inputs[side], leaked.inputs[side])


def test_a_client_whose_every_pair_is_incomplete(said, generator):
    fed = data.with_missing(pairs_federation(), [1.0, 0.0, 0.3], "sample", seed=0)
    first = fed.clients[0].train_rows
    assert not fed.tasks[0].present[first].all(dim=1).any()
    assert not data.complete(fed, "feature").tasks[0].present[first].all()
    (task,) = data.complete(fed, "generator", generator=generator).tasks
    assert task.present[task.is_train].all()


def test_rows_with_neither_side_stay_incomplete(said, generator):
    fed = data.with_missing(pairs_federation(), 0.5, "sample", seed=0, rule="independent")
    neither = ~fed.tasks[0].present.any(dim=1)
    assert neither.any()
    (task,) = data.complete(fed, "generator", generator=generator).tasks
    assert not task.present[neither].any()
    assert task.present[~neither & task.is_train].all()


def test_what_was_made_is_kept(thinned, generator, said):
    (task,) = data.complete(thinned, "generator", generator=generator, seed=1).tasks
    for calls in said.values():
        assert calls
        calls.clear()
    (again,) = data.complete(thinned, "generator", generator=generator, seed=1).tasks
    assert said == {"painter": [], "captioner": []}
    assert torch.equal(task.inputs["image"], again.inputs["image"])
    (other,) = data.complete(thinned, "generator", generator=generator, seed=2).tasks
    assert not torch.equal(task.inputs["image"], other.inputs["image"])
    assert said["captioner"] == []
    said["painter"].clear()
    data.complete(thinned, "generator", generator=replace(generator, steps=3, answer_tokens=5), seed=1)
    assert said["painter"]
    assert said["captioner"]
    said["painter"].clear()
    data.complete(thinned, "generator", generator=replace(generator, guidance=0.0), seed=1)
    assert said["painter"]
    for calls in said.values():
        calls.clear()
    data.complete(thinned, "generator", generator=replace(generator, dtype="bfloat16"), seed=1)
    assert said["painter"]
    assert said["captioner"]


def test_a_kill_loses_one_batch(thinned, generator, said, own_cache, monkeypatch):
    small = replace(generator, batch_size=2)
    calls = []

    def paint(prompts, seeds):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(list(prompts))
        return [painted(p, s) for p, s in zip(prompts, seeds, strict=True)]

    with monkeypatch.context() as patch:
        patch.setattr(Painter, "load", lambda _: paint)
        with pytest.raises(KeyboardInterrupt):
            data.complete(thinned, "generator", generator=small)
    assert not list(own_cache.rglob("*.draft"))
    data.complete(thinned, "generator", generator=small)
    rest = [p for batch in said["painter"] for p in batch]
    assert not {p for batch in calls for p in batch} & set(rest)
    assert len(rest) + 4 == int((~thinned.tasks[0].present[:, 0] & thinned.tasks[0].is_train).sum())


def test_equal_prompts_are_painted_once(said, generator):
    pairs = ImageTextPairs((None,) * 3, ("a", "a", "b"), ("Gull",) * 3, "bird", "photo")
    done = generator.completed(pairs, [0, 1, 2])
    assert [len(batch) for batch in said["painter"]] == [2]
    assert done.pictures[0] == done.pictures[1] != done.pictures[2]


def test_the_oracle_puts_raw_pairs_back_too(thinned):
    (task,) = data.complete(thinned, "oracle", original=pairs_federation()).tasks
    assert np.array_equal(task.raw.pairs.present(), task.present.numpy())


def test_what_it_refuses(thinned, generator, toy_federation):
    with pytest.raises(ValueError, match="needs generator"):
        data.complete(thinned, "generator")
    for side, option in (("image", "text_to_image"), ("text", "captioner")):
        with pytest.raises(ValueError, match=rf"pairs lack their {side}; {option} must name a"):
            data.complete(thinned, "generator", generator=replace(generator, **{option: None}))
        with pytest.raises(FileNotFoundError, match=rf"{option}: there is no model '/no/such'"):
            data.complete(thinned, "generator", generator=replace(generator, **{option: "/no/such"}))
    other = data.with_missing(toy_federation, 0.5, "sample")
    with pytest.raises(ValueError, match="task 'toy' has no raw image-text pairs"):
        data.complete(other, "generator", generator=generator)
    # Nothing is absent there, so nothing is needed.
    assert data.complete(toy_federation, "generator", generator=PairGenerator()).tasks == toy_federation.tasks


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"text_to_image": ""},
            TypeError,
            "text_to_image must name a model by its folder or hub name, got ''",
        ),
        ({"captioner": 3}, TypeError, "captioner must name a model"),
        ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
        ({"guidance": -1.0}, ValueError, "guidance must be finite and >= 0, got -1.0"),
        ({"guidance": "much"}, TypeError, "guidance must be a number, got 'much'"),
        ({"answer_tokens": 0}, ValueError, "answer_tokens must be >= 1, got 0"),
        ({"dtype": "bfloat"}, ValueError, "unknown dtype 'bfloat'; did you mean 'bfloat16'"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an integer >= 1, got 1.5"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        PairGenerator(**options)
