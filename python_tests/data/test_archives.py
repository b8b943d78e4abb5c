from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from mmfl_fast.data.archives import contents_sha256, read_members

FILES = {"b/2.txt": b"two", "b/1.txt": b"one"}


def pack(path, prefix=""):
    contents = {
        **{prefix + name: content for name, content in FILES.items()},
        "b/notes.md": b"-",
        "c/3.txt": b"3",
    }
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:xz") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar.xz"])
@pytest.mark.parametrize("prefix", ["", "repository-1234/", "deep/er/"])
def test_members_are_found_by_their_ending_in_sorted_order(tmp_path, name, prefix):
    members = read_members(pack(tmp_path / name, prefix), r"b/\d\.txt")
    assert list(members.items()) == [("b/1.txt", b"one"), ("b/2.txt", b"two")]


def test_an_ending_starts_at_a_folder(tmp_path):
    assert read_members(pack(tmp_path / "a.zip", "not"), r"b/\d\.txt") == {}


def test_digest_knows_contents_not_packing(tmp_path):
    digests = {
        contents_sha256(read_members(pack(tmp_path / name, prefix), r"b/\d\.txt"))
        for name, prefix in [("a.zip", ""), ("b.zip", "x/"), ("c.tar.xz", "y/")]
    }
    assert len(digests) == 1
    assert contents_sha256({**FILES, "b/1.txt": b"ONE"}) not in digests
    assert contents_sha256({"b/2.txt": b"two", "b/0.txt": b"one"}) not in digests


@pytest.mark.parametrize("name", ["a.zip", "a.tar.xz"])
@pytest.mark.parametrize("damage", ["cut", "nonsense", "empty"])
def test_damaged_archives(tmp_path, name, damage):
    path = pack(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "nonsense": b"nonsense", "empty": b""}[damage])
    with pytest.raises(ValueError, match="is not a readable zip or tar archive"):
        read_members(path, "x")
