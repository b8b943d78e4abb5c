"""Sign Language Digits: photographs of hands, as 32 x 32 grey images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.archives import read_members
from mmfl_fast.data.dataset import Archive, DataSet, Features, SourceFile
from mmfl_fast.data.progress import tracked

_COMMIT = "4b09433ef9d5c60602e8805bb54b8aa2428527f8"
_PHOTO = r"Dataset/\d/IMG_\d+\.JPG"
SIDE = 32


def _extract(files: Mapping[str, Path]) -> Features:
    photos = read_members(files["dataset.zip"], _PHOTO)
    images = [_grey(photos[name]) for name in tracked(list(photos), "Sign Language Digits: photographs")]
    labels = [int(PurePosixPath(name).parent.name) for name in photos]
    return Features(inputs={"image": np.stack(images)}, labels=np.asarray(labels))


def _grey(jpeg: bytes) -> NDArray[np.float32]:
    """Return the photograph as grey values ``[SIDE, SIDE]`` in [0, 1]."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(jpeg)) as photo:
        # Three photographs were published as the camera stored them, 3024 x 3024 and lying on their side.
        upright = ImageOps.exif_transpose(photo)
        small = upright.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    grey: NDArray[np.float32] = np.asarray(small, dtype=np.float32) / np.float32(255)
    return grey


SIGN = DataSet(
    name="sign",
    description="photographs of hand signs for the ten digits, 32 x 32 grey pixels in [0, 1]",
    modalities={"image": (SIDE, SIDE)},
    classes=dict(zip("0123456789", (205, 206, 206, 206, 207, 207, 207, 206, 208, 204), strict=True)),
    licence="Apache-2.0",
    source="A. Mavi, arXiv:2011.08927, 2020; github.com/ardamavi/Sign-Language-Digits-Dataset",
    folder="sign_language_digits",
    files=(
        SourceFile(
            "dataset.zip",
            16973962,
            "e610615221818a65aad2e9781e48f828a5f7597fe4189c5b3d89aaa50f8273e6",
            url=f"https://github.com/ardamavi/Sign-Language-Digits-Dataset/archive/{_COMMIT}.zip",
            archive=Archive(
                upstream_name=f"Sign-Language-Digits-Dataset-{_COMMIT}.zip",
                members=_PHOTO,
                contents_sha256="b2f21d201f987eaf9655e923711be229362c6c850daf452db189536a59f74ca2",
            ),
        ),
    ),
    default_clients=8,
    extract=_extract,
    features_version="grey-32-1",
)
