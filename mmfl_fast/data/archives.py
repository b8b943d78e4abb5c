"""Reading zip and tar archives that hold the same files under different folders."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path

_DAMAGE = (EOFError, zipfile.BadZipFile, tarfile.TarError, LZMAError, zlib.error)


def read_members(path: Path, pattern: str) -> dict[str, bytes]:
    """Return the contents of the members whose path ends in a match of ``pattern``.

    Keys are the matched endings, in sorted order, so that one data set packed twice, by its publisher and
    by us, reads the same.

    Raises:
        ValueError: the file is no zip or tar archive, or it is damaged.
    """
    ending = re.compile(rf"(?:^|/)({pattern})$")
    try:
        found = _zip_members(path, ending) if zipfile.is_zipfile(path) else _tar_members(path, ending)
        return dict(sorted(found))
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a readable zip or tar archive: {error}") from error


def contents_sha256(members: dict[str, bytes]) -> str:
    """Return one digest of names and contents, the same for every way of packing them."""
    digest = hashlib.sha256()
    for name, content in sorted(members.items()):
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _zip_members(path: Path, ending: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if match := ending.search(name):
                yield match.group(1), archive.read(name)


def _tar_members(path: Path, ending: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and (match := ending.search(member.name)):
                yield match.group(1), content.read()
