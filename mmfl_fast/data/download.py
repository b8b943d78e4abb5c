"""Fetching the published files."""

from __future__ import annotations

import sys
from pathlib import Path

from mmfl_fast.data.dataset import CorruptDataError, DataSet, SourceFile


def fetch_dataset(dataset: DataSet, root: Path) -> list[Path]:
    """Download what is absent or damaged under ``root`` and return the paths of all files.

    Each file is checked before it is accepted: by its sha256, or for an archive that its publisher packs
    (GitHub does not promise the same bytes for ever) by the contents of the members that are read.

    Raises:
        ConnectionError: a download failed.
        CorruptDataError: what came is not what was published; it is deleted.
    """
    folder = root / dataset.folder
    folder.mkdir(parents=True, exist_ok=True)
    return [_fetch_file(dataset, file, folder) for file in dataset.files]


def _fetch_file(dataset: DataSet, file: SourceFile, folder: Path) -> Path:
    present = file.locate(folder)
    if present is not None and file.defect(present) is None:
        return present
    target = folder / (file.archive.upstream_name if file.archive else file.name)
    target.unlink(missing_ok=True)
    _download(dataset, file, target)
    if defect := file.defect(target):
        target.unlink()
        raise CorruptDataError(f"data set {dataset.name!r}: the download of {file.url} was refused: {defect}")
    if present is not None and present != target:
        # A damaged archive under our own name would be found before the one just fetched.
        present.unlink()
    return target


def _download(dataset: DataSet, file: SourceFile, target: Path) -> None:
    import pooch
    import requests

    # Pooch would print a checksum to copy for each file that we check ourselves.
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16, timeout=60)
    try:
        pooch.retrieve(
            file.url, known_hash=None, fname=target.name, path=target.parent, downloader=downloader
        )
    except requests.RequestException as error:
        if error.response is not None:
            error.response.close()
        raise ConnectionError(
            f"data set {dataset.name!r}: could not download {file.url}: {error}. "
            f"By other means, put it at {target.absolute()}"
        ) from error
