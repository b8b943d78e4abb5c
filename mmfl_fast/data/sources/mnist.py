"""MNIST handwritten digits: 28 x 28 grey images."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.dataset import DataSet, Features, SourceFile

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped idx file of unsigned bytes: magic number, dimensions (big-endian int32), values."""
    content = gzip.decompress(path.read_bytes())
    num_dims = content[3]
    header = np.frombuffer(content, dtype=">i4", count=1 + num_dims)
    return np.frombuffer(content, dtype=np.uint8, offset=header.nbytes).reshape(header[1:])


def _extract(files: Mapping[str, Path]) -> Features:
    images = [read_idx(files[f"{part}-images-idx3-ubyte.gz"]) for part in ("train", "t10k")]
    labels = [read_idx(files[f"{part}-labels-idx1-ubyte.gz"]) for part in ("train", "t10k")]
    pixels = np.concatenate(images).astype(np.float32) / np.float32(255)
    return Features(
        inputs={"image": pixels},
        labels=np.concatenate(labels).astype(np.int64),
        is_train=np.arange(len(pixels)) < len(images[0]),
    )


def _file(name: str, num_bytes: int, sha256: str) -> SourceFile:
    return SourceFile(name, num_bytes, sha256, url=f"{_MIRROR}/{name}")


MNIST = DataSet(
    name="mnist",
    description="handwritten digits, 28 x 28 grey pixels in [0, 1]",
    modalities={"image": (28, 28)},
    classes=dict(
        zip("0123456789", (6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958), strict=True)
    ),
    licence="CC BY-SA 3.0",
    source="Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits",
    folder="mnist",
    files=(
        _file(
            "train-images-idx3-ubyte.gz",
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        _file(
            "train-labels-idx1-ubyte.gz",
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        _file(
            "t10k-images-idx3-ubyte.gz",
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        _file(
            "t10k-labels-idx1-ubyte.gz",
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    default_clients=20,
    extract=_extract,
    features_version="pixels-2",
    num_train=60000,
)
