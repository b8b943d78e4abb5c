"""A federation from raw image-text pairs in memory or in files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mmfl_fast.data.arrays import Array, from_arrays
from mmfl_fast.data.federation import Federation, Task
from mmfl_fast.data.pairs.image_text import ImageTextPairs
from mmfl_fast.data.pairs.picture import Picture
from mmfl_fast.data.pairs.raw import raw_pairs


def from_pairs(
    images: Sequence[str | os.PathLike[str] | Picture | None],
    captions: Sequence[str | None],
    labels: Array,
    clients: Array,
    split: Array | None = None,
    name: str = "pairs",
    *,
    classes: Sequence[str],
    subject: str,
    medium: str = "photo",
    image_encoder: str = "pixels",
    text_encoder: str = "words",
    features: str = "pooled",
    text_length: int = 64,
    dtype: str = "float32",
    seed: int = 0,
) -> Federation:
    """Build a federation of raw pairs: their features, and beside them the pairs for a generator.

    Features are extracted once for all clients and cached by the contents of the items and of the model.
    :func:`with_missing` takes the raw side away with the features; :func:`complete` with
    ``backend="generator"`` makes the absent raw side and then its features.

    Args:
        images: files, or None where a pair has no image.
        captions: texts with at least one word, or None where a pair has none.
        labels: ``[pairs]`` integers, index into ``classes``.
        clients: ``[pairs]``, as in :func:`from_arrays`.
        split: ``[pairs]``, as in :func:`from_arrays`.
        name: of the federation and its task.
        classes: name of every class, for prompts.
        subject: what all pairs show, ``"bird"``, for prompts.
        medium: what the images are, ``"photo"``, for prompts.
        image_encoder: ``"pixels"`` (patches ``[16, 192]``), or a model of transformers, by its folder or its
            name on the hub: CLIP, ViT and their like.
        text_encoder: ``"words"`` (hashed, ``[512]``), or a model: CLIP, BERT and their like.
        features: of a model, ``"pooled"`` ``[D]`` or ``"tokens"`` ``[T, D]``, float32.
        text_length: tokens of a text that a model sees.
        dtype: ``"float32"`` or ``"bfloat16"``, in which a model computes, whatever it was saved in.
        seed: of the split, as in :func:`from_arrays`.

    Raises:
        TypeError, ValueError: an argument is not as described; names an empty caption.
        MissingDataError, CorruptDataError: an image is not there, not readable, or cut short; names it.
        MissingModelError: there is no such model; tells where it was looked for and what to download.
        UnusableModelError: the model does not fit.
        MissingLibraryError: ``transformers`` is not installed.
    """
    encoders = {
        "image_encoder": image_encoder,
        "text_encoder": text_encoder,
        "features": features,
        "text_length": text_length,
        "dtype": dtype,
    }
    return with_features(
        unencoded(images, captions, labels, clients, split, name, classes, subject, medium, encoders, seed)
    )


def unencoded(
    images: Sequence[str | os.PathLike[str] | Picture | None],
    captions: Sequence[str | None],
    labels: Array,
    clients: Array,
    split: Array | None,
    name: str,
    classes: Sequence[str],
    subject: str,
    medium: str,
    encoders: Mapping[str, Any],
    seed: int,
) -> Federation:
    """Build what :func:`from_pairs` builds, but for the features, which may cost hours.

    Rows can be dealt and left out; then :func:`with_features` makes a federation to train on.
    """
    for option, word in (("subject", subject), ("medium", medium)):
        if not isinstance(word, str) or not word:
            raise TypeError(f"{option} must be a non-empty string, got {word!r}")
    if isinstance(classes, str) or not all(isinstance(c, str) and c for c in classes):
        raise TypeError(f"classes must be a sequence of the classes' names, got {classes!r}")
    pictures = [_picture(row, image) for row, image in enumerate(images)]
    if len(captions) != len(pictures):
        raise ValueError(f"captions has {len(captions)} rows, but images has {len(pictures)}")
    for row, caption in enumerate(captions):
        if caption is not None and not isinstance(caption, str):
            raise TypeError(f"captions[{row}] must be a string or None, got {caption!r}")
    features_to_come = {"image and text": [0.0] * len(pictures)}
    fed = from_arrays(features_to_come, labels, clients, split, name, seed=seed)
    (task,) = fed.tasks
    if task.num_classes > len(classes):
        raise ValueError(f"classes has {len(classes)} names, but labels reach {task.num_classes - 1}")
    task = replace(task, num_classes=len(classes))
    pairs = ImageTextPairs(
        pictures=tuple(pictures),
        captions=tuple(captions),
        categories=tuple(classes[label] for label in task.labels.tolist()),
        subject=subject,
        medium=medium,
    )
    return replace(fed, tasks=(replace(task, raw=raw_pairs(pairs, classes, **encoders)),))


def _picture(row: int, image: object) -> Picture | None:
    if image is None or isinstance(image, Picture):
        return image
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(f"images[{row}] must be a file or None, got {type(image).__name__}")
    return Picture.of_file(os.fspath(image))


def with_features(fed: Federation) -> Federation:
    """Encode the pairs of a federation that :func:`unencoded` built."""
    return replace(fed, tasks=tuple(map(_encoded, fed.tasks)))


def _encoded(task: Task) -> Task:
    assert task.raw is not None
    inputs = {side: torch.from_numpy(x) for side, x in task.raw.inputs().items()}
    return replace(task, inputs=inputs, present=torch.from_numpy(task.raw.pairs.present()))
