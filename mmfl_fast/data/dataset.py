"""What a published data set is: its files, their checksums, and the features taken from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.archives import contents_sha256, read_members


class MissingDataError(FileNotFoundError):
    """A published file is not under the data root."""


class CorruptDataError(ValueError):
    """A file under the data root is not the published one."""


@dataclass(frozen=True)
class Archive:
    """How to recognise the same files in another packing.

    Attributes:
        upstream_name: name of the archive that ``fetch`` leaves.
        members: regular expression of the endings of the member paths that are read.
        contents_sha256: digest of those members (:func:`mmfl_fast.data.archives.contents_sha256`).
    """

    upstream_name: str
    members: str
    contents_sha256: str


@dataclass(frozen=True)
class SourceFile:
    """One published file.

    Attributes:
        name: file name inside the data set's folder.
        num_bytes: its size.
        sha256: its checksum.
        url: where ``fetch`` takes it from.
        archive: for a zip or tar file, whose packing may differ from the publisher's.
    """

    name: str
    num_bytes: int
    sha256: str
    url: str
    archive: Archive | None = None

    def locate(self, folder: Path) -> Path | None:
        """Return the file or its upstream packing, whichever is in ``folder``."""
        names = [self.name, self.archive.upstream_name] if self.archive else [self.name]
        return next((folder / name for name in names if (folder / name).is_file()), None)

    def defect(self, path: Path) -> str | None:
        """Return what distinguishes ``path`` from the published file, None if nothing that matters."""
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found == self.sha256:
            return None
        if self.archive is None:
            return (
                f"expected {self.num_bytes} bytes with sha256 {self.sha256}, "
                f"found {path.stat().st_size} bytes with sha256 {found}"
            )
        try:
            members = read_members(path, self.archive.members)
        except ValueError as error:
            return str(error)
        if contents_sha256(members) == self.archive.contents_sha256:
            return None
        return f"its {len(members)} members that match {self.archive.members!r} are not the published ones"


@dataclass(frozen=True)
class Features:
    """What an extractor returns, in the published order of the samples.

    Attributes:
        inputs: modality name -> float32 ``[N, ...]``.
        labels: int64 ``[N]``, index into ``DataSet.classes``.
        people: int64 ``[N]``, index into ``DataSet.people``, -1 for someone else; None if the data set does
            not say.
        is_train: bool ``[N]``, the published split; None if none is published.
        sequence: int64 ``[N]``, which uninterrupted recording the sample was cut from, counted in time; None
            if the samples are not cut from recordings.
    """

    inputs: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    people: NDArray[np.int64] | None = None
    is_train: NDArray[np.bool_] | None = None
    sequence: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[np.int64]) -> Features:
        """Return the samples at ``rows``, in that order."""
        return Features(
            inputs={modality: x[rows] for modality, x in self.inputs.items()},
            labels=self.labels[rows],
            people=None if self.people is None else self.people[rows],
            is_train=None if self.is_train is None else self.is_train[rows],
            sequence=None if self.sequence is None else self.sequence[rows],
        )


Root: TypeAlias = str | os.PathLike[str] | None
Extractor: TypeAlias = Callable[[Mapping[str, Path]], Features]


@dataclass(frozen=True)
class DataSet:
    """One published data set with one task.

    Attributes:
        name: what ``load`` and tables call it.
        description: one line for listings.
        modalities: modality name -> shape of one sample's features.
        classes: name -> number of samples, official training and test parts together, in label order.
        licence: under which the data are published.
        source: publisher and citation.
        folder: its place under the data root.
        files: everything the extractor reads.
        default_clients: number of clients of a Dirichlet partition where none is given.
        extract: file name -> path, to features.
        features_version: changes whenever ``extract`` returns other numbers; part of the cache's key.
        people: names of the people who produced the samples, natural clients; empty if unknown.
        num_train: size of the published training part; None if no split is published.
    """

    name: str
    description: str
    modalities: Mapping[str, tuple[int, ...]]
    classes: Mapping[str, int]
    licence: str
    source: str
    folder: str
    files: tuple[SourceFile, ...]
    default_clients: int
    extract: Extractor
    features_version: str
    people: tuple[str, ...] = ()
    num_train: int | None = None


def data_root(root: Root) -> Path:
    """Return where data sets lie: ``root``, else the environment's ``MMFL_DATA``, else ``./data``."""
    return Path(root if root is not None else os.environ.get("MMFL_DATA") or "data")


def verified_paths(dataset: DataSet, root: Path) -> dict[str, Path]:
    """Return file name -> path of the data set's files, all present and with the published contents.

    Raises:
        MissingDataError: a file is absent.
        CorruptDataError: a file has other contents.
    """
    folder = root / dataset.folder
    located = {file.name: file.locate(folder) for file in dataset.files}
    paths = {name: path for name, path in located.items() if path is not None}
    absent = [name for name in located if name not in paths]
    if absent:
        origins = [file.url for file in dataset.files if file.name in absent]
        raise MissingDataError(
            f"data set {dataset.name!r} needs {', '.join(absent)}\n"
            f"  looked in: {folder.absolute()} (data root: the argument root, else MMFL_DATA, else ./data)\n"
            f"  published by: {dataset.source}\n"
            f"  from: {', '.join(origins)}\n"
            f"  licence: {dataset.licence}\n"
            f"  get it with: mmfl-fast data fetch {dataset.name}"
        )
    for file in dataset.files:
        if defect := file.defect(paths[file.name]):
            raise CorruptDataError(
                f"data set {dataset.name!r}: {paths[file.name].absolute()} is not the published file: "
                f"{defect}. Delete it and run: mmfl-fast data fetch {dataset.name}"
            )
    return paths
