"""Completion of raw image-text pairs by frozen generators (papers.md 3.2, 3.9)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmfl_fast.data.arguments import require_choice, require_integer, require_non_negative
from mmfl_fast.data.cache import cache_folder
from mmfl_fast.data.pairs.captioner import Captioner
from mmfl_fast.data.pairs.generated import Make, generated
from mmfl_fast.data.pairs.image_text import ImageTextPairs
from mmfl_fast.data.pairs.painter import Painter
from mmfl_fast.data.pairs.picture import Picture
from mmfl_fast.data.pairs.pretrained import DTYPES
from mmfl_fast.data.pairs.prompts import (
    attribute_question,
    category_question,
    class_prompt,
    image_prompt,
)


@dataclass(frozen=True)
class PairGenerator:
    """Makes the absent side of a pair from the other one, or pairs from the names of classes.

    An image from the words: class, super-class and caption make the prompt. Words from an image: a first turn
    asks for the category, a second for the visible attributes of that category, and the caption is both
    answers. What was made lies in the cache by model, prompt or image, and seed.

    Attributes:
        text_to_image: a pipeline of diffusers, by its folder or its name on the hub.
        captioner: a BLIP-2-type model of transformers, likewise.
        steps: of denoising; None: the pipeline's own number.
        guidance: weight of the prompt in denoising; None: the pipeline's own.
        answer_tokens: length of each of the captioner's two answers at most.
        batch_size: items at a time.
        dtype: ``"float32"`` or ``"bfloat16"``, in which both models compute.
    """

    text_to_image: str | None = None
    captioner: str | None = None
    steps: int | None = None
    guidance: float | None = None
    answer_tokens: int = 24
    batch_size: int = 8
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError, ValueError: names the option and what came.
        """
        for option in ("text_to_image", "captioner"):
            model = getattr(self, option)
            if model is not None and (not isinstance(model, str) or not model):
                raise TypeError(f"{option} must name a model by its folder or hub name, got {model!r}")
        if self.steps is not None:
            require_integer("steps", self.steps, minimum=1)
        if self.guidance is not None:
            require_non_negative("guidance", self.guidance)
        require_integer("answer_tokens", self.answer_tokens, minimum=1)
        require_integer("batch_size", self.batch_size, minimum=1)
        require_choice("dtype", self.dtype, DTYPES)

    def completed(self, pairs: ImageTextPairs, rows: Sequence[int], seed: int = 0) -> ImageTextPairs:
        """Return the pairs with both sides in ``rows``, as far as these have one.

        Args:
            pairs: some of which lack a side.
            rows: those to complete.
            seed: integer >= 0, of the images; answers are the likeliest and need none.

        Raises:
            ValueError: a side is absent for which no model is named.
            MissingModelError, UnusableModelError: a model is not there, or does not fit.
            MissingLibraryError: ``diffusers`` or ``transformers`` is not installed.
        """
        seed = require_integer("seed", seed, minimum=0)
        pictures, captions = list(pairs.pictures), list(pairs.captions)
        painted = [r for r in rows if pictures[r] is None and captions[r] is not None]
        described = [r for r in rows if captions[r] is None and pictures[r] is not None]
        if painted:
            prompts = [
                image_prompt(pairs.categories[r], pairs.subject, pairs.medium, captions[r] or "")
                for r in painted
            ]
            painter = self._painter(f"{len(painted)} pairs lack their image")
            draws = [f"{seed}\0{prompt}" for prompt in prompts]
            for row, made in zip(painted, self._painted(painter, prompts, draws), strict=True):
                pictures[row] = made
        if described:
            captioner = self._captioner(f"{len(described)} pairs lack their text")
            seen = [picture for r in described if (picture := pairs.pictures[r]) is not None]
            told = self._described(captioner, seen, pairs.subject, pairs.medium)
            for row, caption in zip(described, told, strict=True):
                captions[row] = caption
        return replace(pairs, pictures=tuple(pictures), captions=tuple(captions))

    def imagined(
        self, classes: Sequence[str], subject: str, medium: str, count: int, seed: int = 0
    ) -> ImageTextPairs:
        """Return pairs that nobody had: an image from the name of a class, then its caption.

        The classes take turns, so that their numbers differ by one at most. A smaller count gives the first
        of what a larger one gives.

        Args:
            classes: name of every class.
            subject: what all of them are, ``"bird"``.
            medium: what the images shall be, ``"photo"``.
            count: pairs to make.
            seed: integer >= 0, of the images.

        Raises:
            ValueError: a class has no name, or one of the two models is not named.
            MissingModelError, UnusableModelError: a model is not there, or does not fit.
            MissingLibraryError: ``diffusers`` or ``transformers`` is not installed.
        """
        seed = require_integer("seed", seed, minimum=0)
        count = require_integer("count", count, minimum=1)
        for number, name in enumerate(classes):
            if not name.strip():
                raise ValueError(f"classes[{number}] has no name, of which a prompt is made; got {name!r}")
        wanted = f"{count} server_items are to be made from the names of {len(classes)} classes"
        # Both, before the first begins.
        painter, captioner = self._painter(wanted), self._captioner(wanted)
        categories = [classes[i % len(classes)] for i in range(count)]
        prompts = [class_prompt(category, subject, medium) for category in categories]
        draws = [f"{seed}\0{prompt}\0{i}" for i, prompt in enumerate(prompts)]
        pictures = self._painted(painter, prompts, draws)
        captions = self._described(captioner, pictures, subject, medium)
        return ImageTextPairs(tuple(pictures), tuple(captions), tuple(categories), subject, medium)

    def _painter(self, wanted: str) -> Painter:
        if self.text_to_image is None:
            raise ValueError(f"{wanted}; text_to_image must name a pipeline")
        return Painter(self.text_to_image, self.steps, self.guidance, self.dtype)

    def _captioner(self, wanted: str) -> Captioner:
        if self.captioner is None:
            raise ValueError(f"{wanted}; captioner must name a model")
        return Captioner(self.captioner, self.answer_tokens, self.dtype)

    def _painted(self, painter: Painter, prompts: Sequence[str], draws: Sequence[str]) -> list[Picture]:
        """One picture per prompt; equal ones for equal draws, which name prompt and noise."""
        keys = [hashlib.sha256(draw.encode()).hexdigest() for draw in draws]
        paths = [_folder(painter.identity) / f"{key}.png" for key in keys]

        def load() -> Make:
            paint = painter.load()
            return lambda some: paint([prompts[i] for i in some], [int(keys[i][:15], 16) for i in some])

        generated(paths, load, self.batch_size, f"images by {painter.model}")
        return [Picture.of_file(path) for path in paths]

    def _described(
        self, captioner: Captioner, pictures: Sequence[Picture], subject: str, medium: str
    ) -> list[str]:
        asked = attribute_question(category_question(subject, medium), "")
        keys = [hashlib.sha256(f"{asked}\0{picture.digest()}".encode()).hexdigest() for picture in pictures]
        paths = [_folder(captioner.identity) / f"{key}.txt" for key in keys]

        def load() -> Make:
            describe = captioner.load()
            return lambda some: [
                caption.encode() for caption in describe([pictures[i] for i in some], subject, medium)
            ]

        generated(paths, load, self.batch_size, f"captions by {captioner.model}")
        return [path.read_text(encoding="utf-8") for path in paths]


def _folder(identity: str) -> Path:
    return cache_folder() / "generated" / identity


def require_generator(value: object) -> None:
    """Raise unless ``value`` is a :class:`PairGenerator`."""
    if not isinstance(value, PairGenerator):
        raise TypeError(f"generator must be a mf.data.PairGenerator, got {type(value).__name__}")
