"""What a task of image-text pairs keeps beside its features: the raw pairs and the encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_choice, require_integer
from mmfl_fast.data.pairs.encoder import Encoder, Item, Rows, encoded
from mmfl_fast.data.pairs.frozen import FrozenImageEncoder, FrozenTextEncoder
from mmfl_fast.data.pairs.image_text import SIDES, ImageTextPairs
from mmfl_fast.data.pairs.picture import Picture
from mmfl_fast.data.pairs.plain import PixelEncoder, WordEncoder
from mmfl_fast.data.pairs.pretrained import DTYPES

ENCODER_OPTIONS = {
    "image_encoder": "pixels",
    "text_encoder": "words",
    "features": "pooled",
    "text_length": 64,
    "dtype": "float32",
}


@dataclass(frozen=True, eq=False)
class RawPairs:
    """Row by row what the features of a task were made from.

    Attributes:
        pairs: with the sides that the rows have.
        classes: name of every class, in the order of the labels.
        image_encoder: of the images.
        text_encoder: of the texts.
    """

    pairs: ImageTextPairs
    classes: tuple[str, ...]
    image_encoder: Encoder[Picture]
    text_encoder: Encoder[str]

    def inputs(self) -> dict[str, Rows]:
        """Return ``image`` and ``text``, float32 ``[N, ...]``; absent sides are zero.

        Raises:
            ValueError: no pair has an image, or none has a text, so that the features have no width.
            CorruptDataError: an image is not readable.
            MissingModelError, UnusableModelError: an encoder's model is not there, or does not fit.
        """
        image = _features("image", self.image_encoder, self.pairs.pictures)
        return dict(
            zip(SIDES, (image, _features("text", self.text_encoder, self.pairs.captions)), strict=True)
        )

    def take(self, rows: Sequence[int]) -> RawPairs:
        """Return the rows at ``rows``, in that order."""
        return replace(self, pairs=self.pairs.take(rows))

    def keeping(self, present: NDArray[np.bool_]) -> RawPairs:
        """Return the rows without the sides that are not ``present``, bool ``[N, 2]``."""
        return replace(self, pairs=self.pairs.keeping(present))


def raw_pairs(
    pairs: ImageTextPairs,
    classes: Sequence[str],
    *,
    image_encoder: str,
    text_encoder: str,
    features: str,
    text_length: int,
    dtype: str,
) -> RawPairs:
    """Join pairs and the encoders of these options.

    Args:
        pairs: the raw pairs.
        classes: name of every class.
        image_encoder: ``"pixels"``, or the model of a :class:`FrozenImageEncoder`.
        text_encoder: ``"words"``, or the model of a :class:`FrozenTextEncoder`.
        features: ``"pooled"`` or ``"tokens"``, what a model gives of an item; pixels and words have one form.
        text_length: tokens of a text.
        dtype: ``"float32"`` or ``"bfloat16"``, in which a model computes.

    Raises:
        TypeError, ValueError: an option is not as described.
    """
    tokens = require_choice("features", features, ["pooled", "tokens"]) == "tokens"
    length = require_integer("text_length", text_length, minimum=1)
    dtype = require_choice("dtype", dtype, DTYPES)
    for option, model in (("image_encoder", image_encoder), ("text_encoder", text_encoder)):
        if not isinstance(model, str) or not model:
            raise TypeError(f"{option} must name a model by its folder or hub name, got {model!r}")
    image = PixelEncoder() if image_encoder == "pixels" else FrozenImageEncoder(image_encoder, tokens, dtype)
    text = (
        WordEncoder() if text_encoder == "words" else FrozenTextEncoder(text_encoder, tokens, length, dtype)
    )
    return RawPairs(pairs, tuple(classes), image, text)


def _features(side: str, encoder: Encoder[Item], items: Sequence[Item | None]) -> Rows:
    there = np.asarray([item is not None for item in items], dtype=np.bool_)
    if not there.any():
        raise ValueError(f"no pair has its {side}; the features of one tell their width")
    rows: Rows = encoded(encoder, [item for item in items if item is not None])
    if there.all():
        return rows
    features = np.zeros((len(items), *rows.shape[1:]), dtype=np.float32)
    features[there] = rows
    return features
