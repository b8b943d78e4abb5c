"""Extracted features, computed once and kept as safetensors."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.dataset import DataSet, Features, Root, data_root, verified_paths

_INPUT, _LABELS = "input:", "labels"
_OPTIONAL = ("people", "is_train", "sequence")

_log = logging.getLogger(__name__)


def load_features(dataset: DataSet, root: Root = None) -> Features:
    """Return the features of ``dataset``, from the cache if they are there and intact.

    The cache's key is made of the published checksums and the version of the extractor, so a hit needs no
    source files. A damaged entry is logged and made anew.

    Raises:
        MissingDataError, CorruptDataError: there is no cache entry and the source files are not as published.
    """
    path = cache_folder() / f"{dataset.name}-{cache_key(dataset)}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except _DamagedEntryError as error:
            _log.warning("%s: %s; extracting the features of %r again", path, error, dataset.name)
    features = dataset.extract(verified_paths(dataset, data_root(root)))
    _write(path, features)
    return features


def cache_folder() -> Path:
    """Return the folder of the cache: ``MMFL_CACHE``, else the user's cache folder of this system."""
    if chosen := os.environ.get("MMFL_CACHE"):
        return Path(chosen)
    import pooch

    return Path(pooch.os_cache("mmfl_fast"))


def cache_key(dataset: DataSet) -> str:
    """Return a digest of the source files' checksums and the extractor's version."""
    parts = [*(file.sha256 for file in dataset.files), dataset.features_version]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class _DamagedEntryError(Exception):
    pass


def _read(path: Path) -> Features:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            checksums = json.loads((file.metadata() or {}).get("crc32", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise _DamagedEntryError(str(error)) from error
    if {name: _crc32(tensor) for name, tensor in tensors.items()} != checksums or _LABELS not in tensors:
        raise _DamagedEntryError("checksums do not match")
    return Features(
        # The file sorts its tensors; the checksums keep the order of the modalities, a mask's columns.
        inputs={name[len(_INPUT) :]: tensors[name] for name in checksums if name.startswith(_INPUT)},
        labels=tensors[_LABELS],
        **{name: tensors.get(name) for name in _OPTIONAL},
    )


def _write(path: Path, features: Features) -> None:
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[np.generic]] = {_INPUT + name: x for name, x in features.inputs.items()}
    tensors[_LABELS] = features.labels
    tensors.update({name: x for name in _OPTIONAL if (x := getattr(features, name)) is not None})
    # safetensors writes memory as it lies, whatever the strides say.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # It notices a short file, but not a changed byte.
    checksums = json.dumps({name: _crc32(tensor) for name, tensor in tensors.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".draft")
    os.close(handle)
    try:
        save_file(tensors, draft, metadata={"crc32": checksums})
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _crc32(tensor: NDArray[np.generic]) -> int:
    return zlib.crc32(tensor.data)
