"""Frozen encoders of pretrained models, through transformers: CLIP, ViT, BERT and their like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.data.pairs.encoder import Rows
from mmfl_fast.data.pairs.model_folder import (
    UnusableModelError,
    folder_digest,
    library,
    model_folder,
    reading,
)
from mmfl_fast.data.pairs.picture import Picture
from mmfl_fast.data.pairs.pretrained import computed_in, pretrained

# Raised when the same model and items would give other features.
_VERSION = "1"


@dataclass(frozen=True)
class FrozenImageEncoder:
    """Images to features of a pretrained model.

    Attributes:
        model: folder, or name on the hub (:func:`model_folder`).
        tokens: ``[T, D]``, the last hidden states of the class token and all patches; else ``[D]``, of CLIP
            the projection into the space it shares with text, of others the class token.
        dtype: ``"float32"`` or ``"bfloat16"``, in which the model computes; features are float32.
    """

    model: str
    tokens: bool = False
    dtype: str = "float32"
    option = "image_encoder"

    @property
    def name(self) -> str:
        """For the progress line."""
        return f"images through {self.model}"

    @cached_property
    def folder(self) -> Path:
        """Where the model lies."""
        return model_folder(self.option, self.model)

    @cached_property
    def identity(self) -> str:
        """Digest of the model's files, the kind of features and the precision."""
        return _digest("image", folder_digest(self.folder), self.tokens, self.dtype)

    def load(self) -> Callable[[Sequence[Picture]], Rows]:
        """Load the model, to the GPU if there is one.

        Raises:
            UnusableModelError: the folder holds no complete model of images.
            ValueError: the device does not compute in ``dtype``.
        """
        transformers, dtype = library("transformers", self.option), computed_in(self.dtype)
        with reading(self.option, self.folder, "a model of images with its preprocessor"):
            model, part = _model(
                transformers, self.folder, "vision_model", "pixel_values", self.option, dtype
            )
            # Other backends resize to slightly other pixels.
            processor = transformers.AutoImageProcessor.from_pretrained(
                self.folder, local_files_only=True, backend="pil"
            )

        @torch.inference_mode()
        def encode(pictures: Sequence[Picture]) -> Rows:
            images = [picture.rgb() for picture in pictures]
            pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(model.device, dtype)
            if not self.tokens and hasattr(model, "get_image_features"):
                return _rows(model.get_image_features(pixel_values=pixels).pooler_output)
            states = part(pixel_values=pixels).last_hidden_state
            return _rows(states if self.tokens else states[:, 0])

        return encode


@dataclass(frozen=True)
class FrozenTextEncoder:
    """Text to features of a pretrained model.

    Attributes:
        model: folder, or name on the hub (:func:`model_folder`).
        tokens: ``[length, D]``, the last hidden states, zero behind the end of the text; else ``[D]``, of
            CLIP the projection into the space it shares with images, of others the mean of the states.
        length: texts are cut after so many tokens.
        dtype: ``"float32"`` or ``"bfloat16"``, in which the model computes; features are float32.
    """

    model: str
    tokens: bool = False
    length: int = 64
    dtype: str = "float32"
    option = "text_encoder"

    @property
    def name(self) -> str:
        """For the progress line."""
        return f"texts through {self.model}"

    @cached_property
    def folder(self) -> Path:
        """Where the model lies."""
        return model_folder(self.option, self.model)

    @cached_property
    def identity(self) -> str:
        """Digest of the model's files, the kind of features, the length and the precision."""
        return _digest("text", folder_digest(self.folder), self.tokens, self.length, self.dtype)

    def load(self) -> Callable[[Sequence[str]], Rows]:
        """Load the model, to the GPU if there is one.

        Raises:
            UnusableModelError: the folder holds no complete model of text, or one for shorter texts.
            ValueError: the device does not compute in ``dtype``.
        """
        transformers, dtype = library("transformers", self.option), computed_in(self.dtype)
        with reading(self.option, self.folder, "a model of text with its tokenizer"):
            model, part = _model(transformers, self.folder, "text_model", "input_ids", self.option, dtype)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            longest = getattr(part.config, "max_position_embeddings", self.length)
            if self.length > longest:
                raise UnusableModelError(
                    f"text_length: {self.folder} takes at most {longest} tokens, got {self.length}"
                )

        @torch.inference_mode()
        def encode(texts: Sequence[str]) -> Rows:
            batch = tokenizer(
                list(texts),
                padding="max_length",
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            )
            ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
            if not self.tokens and hasattr(model, "get_text_features"):
                return _rows(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
            states = part(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask.unsqueeze(-1)
            return _rows(
                states if self.tokens else states.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
            )

        return encode


def _model(
    transformers: Any, folder: Path, part: str, takes: str, option: str, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Return a model, and the part of it that ``takes`` one modality."""
    model = pretrained(transformers.AutoModel, folder, option, dtype)
    inner = getattr(model, part, model)
    if inner.main_input_name != takes:
        raise UnusableModelError(
            f"{option}: {folder.absolute()} holds a {type(model).__name__}, which takes "
            f"{inner.main_input_name}, not {takes}"
        )
    return model, inner


def _rows(x: Tensor) -> Rows:
    rows: Rows = x.float().cpu().numpy()
    return rows


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, (_VERSION, *parts))).encode()).hexdigest()[:32]
