"""Captioner and painter through transformers and diffusers, with tiny models of random weights."""

import numpy as np
import pytest
import torch

from mmfl_fast.data import PairGenerator
from mmfl_fast.data.pairs import prompts
from mmfl_fast.data.pairs.captioner import Captioner
from mmfl_fast.data.pairs.image_text import ImageTextPairs
from mmfl_fast.data.pairs.model_folder import UnusableModelError
from mmfl_fast.data.pairs.painter import Painter
from mmfl_fast.data.pairs.picture import Picture

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_caption_is_what_the_model_answers_in_two_turns(models, pictures):
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    captions = Captioner(str(models("blip2")), new_tokens=5).load()(pictures, "bird", "photo")
    assert len(set(captions)) > 1
    model = Blip2ForConditionalGeneration.from_pretrained(models("blip2")).eval()
    processor = Blip2Processor.from_pretrained(models("blip2"))

    def answer(picture, question):
        batch = processor(images=picture.rgb(), text=question, return_tensors="pt")
        ids = model.generate(**batch, max_new_tokens=5, do_sample=False)[0, batch["input_ids"].shape[1] :]
        return prompts.answer_in(processor.tokenizer.decode(ids, skip_special_tokens=True))

    first = prompts.category_question("bird", "photo")
    for picture, caption in zip(pictures, captions, strict=True):
        category = answer(picture, first) or "bird"
        attributes = answer(picture, prompts.attribute_question(first, category))
        assert caption == prompts.joined_caption(category, attributes)


def test_an_image_depends_on_prompt_and_seed_alone(models):
    paint = Painter(str(models("diffusion")), steps=2, guidance=None).load()
    together = paint(["a red bird", "a blue bird", "a red bird"], [0, 1, 1])
    assert paint(["a blue bird"], [1]) == together[1:2]
    assert len(set(together)) == 3
    assert all(content.startswith(b"\x89PNG") for content in together)
    weak = Painter(str(models("diffusion")), steps=2, guidance=0.0).load()
    assert weak(["a red bird"], [0]) != together[:1]


def test_bfloat16_paints_and_tells_nearly_the_same(models, pictures):
    paint, roughly = (
        Painter(str(models("diffusion")), 2, None, dtype).load() for dtype in ("float32", "bfloat16")
    )
    asked = (["a red bird", "a blue bird"], [0, 1])
    exact, rough = (
        np.stack([np.asarray(Picture("x", png).rgb(), dtype=float) for png in made(*asked)])
        for made in (paint, roughly)
    )
    assert not np.array_equal(exact, rough)
    assert np.abs(exact - rough).mean() < 4 < np.abs(exact[0] - exact[1]).mean()
    told = [
        Captioner(str(models("blip2")), 1, dtype).load()(pictures, "bird", "photo")
        for dtype in ("float32", "bfloat16")
    ]
    # Of one word each, the likeliest of which rounding seldom changes.
    assert sum(a == b for a, b in zip(*told, strict=True)) >= 3


def test_pairs_are_completed_both_ways_without_the_network(models, pictures, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    pairs = ImageTextPairs(
        (None, pictures[0], pictures[1]), ("a red bird", None, "a bird"), ("Gull",) * 3, "bird", "photo"
    )
    generator = PairGenerator(
        text_to_image=str(models("diffusion")), captioner=str(models("blip2")), steps=1, answer_tokens=4
    )
    done = generator.completed(pairs, [0, 1, 2])
    assert done.present().all()
    assert done.captions[::2] == pairs.captions[::2]
    assert done.pictures[1:] == pairs.pictures[1:]
    assert np.asarray(done.pictures[0].rgb()).std() > 0
    assert torch.is_inference_mode_enabled() is False


def test_wrong_folders(models):
    with pytest.raises(UnusableModelError, match=r"captioner: .*does not hold a BLIP-2-type model"):
        Captioner(str(models("bert")), 5).load()
    with pytest.raises(
        UnusableModelError, match=r"text_to_image: .*a text-to-image pipeline .*\n  it holds:"
    ):
        Painter(str(models("vit")), None, None).load()
