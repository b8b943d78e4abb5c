"""Images to captions in two turns, by a BLIP-2-type model of transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mmfl_fast.data.pairs import prompts
from mmfl_fast.data.pairs.model_folder import folder_digest, library, model_folder, reading
from mmfl_fast.data.pairs.picture import Picture
from mmfl_fast.data.pairs.pretrained import computed_in, pretrained


@dataclass(frozen=True)
class Captioner:
    """A model that answers questions about an image, always with its likeliest words.

    Attributes:
        model: folder, or name on the hub (:func:`model_folder`).
        new_tokens: length of an answer at most.
        dtype: ``"float32"`` or ``"bfloat16"``, in which the model computes.
    """

    model: str
    new_tokens: int
    dtype: str = "float32"
    option = "captioner"

    @cached_property
    def folder(self) -> Path:
        """Where the model lies."""
        return model_folder(self.option, self.model)

    @cached_property
    def identity(self) -> str:
        """Digest of the model's files, the length and the precision."""
        facts = f"{folder_digest(self.folder)} {self.new_tokens} {self.dtype}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def load(self) -> Callable[[Sequence[Picture], str, str], list[str]]:
        """Load the model, and return the function from pictures, subject and medium to captions.

        The category is the model's answer, or the subject where it has none; so no caption is empty.

        Raises:
            UnusableModelError: the folder holds no complete model of this type.
            ValueError: the device does not compute in ``dtype``.
        """
        transformers, dtype = library("transformers", self.option), computed_in(self.dtype)
        with reading(self.option, self.folder, "a BLIP-2-type model with its processor"):
            model = pretrained(transformers.AutoModelForImageTextToText, self.folder, self.option, dtype)
            processor = transformers.AutoProcessor.from_pretrained(
                self.folder, local_files_only=True, backend="pil"
            )
        # What is generated continues the right end of a prompt.
        processor.tokenizer.padding_side = "left"

        @torch.inference_mode()
        def answers(images: list[object], questions: list[str]) -> list[str]:
            batch = processor(images=images, text=questions, padding=True, return_tensors="pt")
            batch = batch.to(model.device, dtype)
            ids = model.generate(**batch, max_new_tokens=self.new_tokens, do_sample=False, num_beams=1)
            asked = batch["input_ids"]
            # Decoders give the question back before the answer; encoder-decoders do not.
            if torch.equal(ids[:, : asked.shape[1]], asked):
                ids = ids[:, asked.shape[1] :]
            said = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
            return [prompts.answer_in(text) for text in said]

        def describe(pictures: Sequence[Picture], subject: str, medium: str) -> list[str]:
            images: list[object] = [picture.rgb() for picture in pictures]
            first = prompts.category_question(subject, medium)
            categories = [answer or subject for answer in answers(images, [first] * len(images))]
            attributes = answers(images, [prompts.attribute_question(first, c) for c in categories])
            return [prompts.joined_caption(c, a) for c, a in zip(categories, attributes, strict=True)]

        return describe
