"""A federation from one ``.npz`` file or its unpacked folder, the form that a YAML experiment names."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.arguments import suggestion
from mmfl_fast.data.arrays import from_arrays
from mmfl_fast.data.federation import Federation

_MODALITY, _PRESENT = "modality:", "present:"


def load_npz(
    path: str | os.PathLike[str], name: str | None = None, *, num_classes: int | None = None, seed: int = 0
) -> Federation:
    """Read the arrays of :func:`from_arrays` from a ``.npz`` file.

    Keys: ``modality:<name>`` (one or more), ``labels``, ``clients``, and optionally ``split`` and
    ``present:<name>``. Nothing is unpickled: strings must be stored as unicode or bytes arrays.

    A folder holds every key as a file, ``labels.npy``, ``modality:<name>.npy``, ...: what unpacking a
    ``.npz`` leaves. Of its float32 modalities only the rows of a batch are read.

    Args:
        path: the file or the folder.
        name: name of the federation and of its task; that of the file or folder without suffix if None.
        num_classes: as in :func:`from_arrays`.
        seed: as in :func:`from_arrays`.

    Raises:
        TypeError: ``path`` is no path, or an array has the wrong type.
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is damaged, a key is missing or unknown, or an array is not valid for
            :func:`from_arrays`.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be that of a .npz file or folder, got {path!r}")
    path = Path(path)
    arrays = _read(path)
    inputs = _with_prefix(arrays, _MODALITY)
    present = _with_prefix(arrays, _PRESENT)
    _require_keys(path, arrays, inputs)
    try:
        return from_arrays(
            inputs,
            arrays["labels"],
            arrays["clients"],
            arrays.get("split"),
            path.stem if name is None else name,
            present=present or None,
            num_classes=num_classes,
            seed=seed,
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _read_folder(path: Path) -> dict[str, NDArray[np.generic]]:
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        try:
            # Only what is large stays in its file.
            stays = file.name.startswith(_MODALITY)
            arrays[file.stem] = np.load(file, mmap_mode="r" if stays else None, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    return arrays


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if path.is_dir():
        return _read_folder(path)
    if not zipfile.is_zipfile(path):
        # Opening it tells a missing or forbidden file from a damaged one.
        with path.open("rb"):
            raise ValueError(f"{path} is not a .npz file, or it is cut short")
    arrays, key = {}, None
    try:
        # NumPy would leave a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for key in archive.files:
                arrays[key] = archive[key]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        pickled = "allow_pickle" in str(error)
        if pickled and key is not None:
            raise ValueError(
                f"{path}: {key!r} is an array of Python objects, which would have to be unpickled; "
                "store strings as unicode arrays, e.g. np.asarray(ids, dtype=str)"
            ) from error
        # NumPy takes a file that does not begin as an archive for a pickled one.
        told = "it does not begin as an archive" if pickled else error
        raise ValueError(f"{path} is damaged: {told}") from error
    return arrays


def _with_prefix(arrays: dict[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    return {key[len(prefix) :]: array for key, array in arrays.items() if key.startswith(prefix)}


def _require_keys(
    path: Path, arrays: dict[str, NDArray[np.generic]], inputs: dict[str, NDArray[np.generic]]
) -> None:
    known = ["labels", "clients", "split"]
    for key in arrays:
        if key not in known and not key.startswith((_MODALITY, _PRESENT)):
            choices = [*known, f"{_MODALITY}<name>", f"{_PRESENT}<name>"]
            raise ValueError(f"{path} has the unknown key {key!r}{suggestion(key, choices)}")
    absent = [key for key in ("labels", "clients") if key not in arrays]
    if not inputs:
        absent.append(f"{_MODALITY}<name>")
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}; it has {', '.join(arrays) or 'no keys'}")
