"""Prompts to images, by a text-to-image pipeline of diffusers."""

from __future__ import annotations

import hashlib
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmfl_fast.data.pairs.model_folder import (
    UnusableModelError,
    folder_digest,
    library,
    model_folder,
    reading,
)
from mmfl_fast.data.pairs.pretrained import computed_in, device

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Painter:
    """A pipeline; the same prompt and seed give the same image.

    Attributes:
        model: folder, or name on the hub (:func:`model_folder`).
        steps: of denoising; None: as many as the pipeline does by itself.
        guidance: weight of the prompt; None: the pipeline's own.
        dtype: ``"float32"`` or ``"bfloat16"``, in which the pipeline computes.
    """

    model: str
    steps: int | None
    guidance: float | None
    dtype: str = "float32"
    option = "text_to_image"

    @cached_property
    def folder(self) -> Path:
        """Where the pipeline lies."""
        return model_folder(self.option, self.model)

    @cached_property
    def identity(self) -> str:
        """Digest of the pipeline's files, steps, guidance and precision."""
        facts = f"{folder_digest(self.folder)} {self.steps} {self.guidance} {self.dtype}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def load(self) -> Callable[[Sequence[str], Sequence[int]], list[bytes]]:
        """Load the pipeline, and return the function from prompts and seeds to PNG files.

        Raises:
            UnusableModelError: the folder holds no pipeline from text to image.
            ValueError: the device does not compute in ``dtype``.
        """
        diffusers, dtype = library("diffusers", self.option), computed_in(self.dtype)
        with reading(self.option, self.folder, "a text-to-image pipeline of diffusers"):
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                self.folder, local_files_only=True, use_safetensors=True, dtype=dtype
            )
            if "prompt" not in inspect.signature(pipeline.__call__).parameters:
                raise UnusableModelError(
                    f"{self.option}: {self.folder} holds a {type(pipeline).__name__}, which takes no prompt"
                )
        pipeline = pipeline.to(device())
        pipeline.set_progress_bar_config(disable=True)
        chosen = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        options = {name: value for name, value in chosen.items() if value is not None}

        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[bytes]:
            # One generator per image: what it becomes does not depend on its batch.
            noise = [torch.Generator().manual_seed(seed) for seed in seeds]
            images = pipeline(prompt=list(prompts), generator=noise, output_type="pil", **options).images
            return [_png(image) for image in images]

        return paint


def _png(image: Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()
