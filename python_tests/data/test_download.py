from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest

import mmfl_fast.data as data
from mmfl_fast.data import registry
from mmfl_fast.data.archives import contents_sha256, read_members
from mmfl_fast.data.dataset import Archive, CorruptDataError, DataSet, Features, SourceFile, verified_paths
from mmfl_fast.data.download import fetch_dataset

TABLE = b"label\n1\n0\n"
MEMBERS = {"photos/1.txt": b"one", "photos/2.txt": b"two"}


class RecordingHandler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, *_):
        self.server.requests.append(self.path)

    def log_error(self, *_):
        pass


@pytest.fixture
def upstream(tmp_path):
    """Serve tmp_path / "upstream" on this machine; return its URL, folder and the list of requests."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    handler = functools.partial(RecordingHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder, server.requests
        server.shutdown()
        thread.join()


def pack(path, prefix, extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*MEMBERS.items(), *extra]:
            archive.writestr(prefix + name, content)
    return path


@pytest.fixture
def toy(upstream, tmp_path):
    url, folder, _ = upstream
    (folder / "table.csv").write_bytes(TABLE)
    pack(folder / "0123.zip", "toy-0123/", [("README.md", b"hello")])
    ours = pack(tmp_path / "ours.zip", "").read_bytes()
    pattern = r"photos/\d\.txt"
    return DataSet(
        name="toy",
        description="two photos",
        modalities={"image": (1,)},
        classes={"zero": 1, "one": 1},
        licence="CC0",
        source="here",
        folder="toys",
        files=(
            SourceFile("table.csv", len(TABLE), hashlib.sha256(TABLE).hexdigest(), url=f"{url}/table.csv"),
            SourceFile(
                "photos.zip",
                len(ours),
                hashlib.sha256(ours).hexdigest(),
                url=f"{url}/0123.zip",
                archive=Archive("toy-0123.zip", pattern, contents_sha256(MEMBERS)),
            ),
        ),
        default_clients=1,
        extract=lambda files: Features(
            {"image": np.ones((len(read_members(files["photos.zip"], pattern)), 1), np.float32)}, np.arange(2)
        ),
        features_version="1",
    )


def test_files_arrive_and_are_read(toy, upstream, tmp_path):
    root = tmp_path / "root"
    paths = fetch_dataset(toy, root)
    assert paths == [root / "toys" / "table.csv", root / "toys" / "toy-0123.zip"]
    assert sorted(path.name for path in (root / "toys").iterdir()) == ["table.csv", "toy-0123.zip"]
    assert toy.extract(verified_paths(toy, root)).inputs["image"].shape == (2, 1)


def test_what_is_there_is_not_fetched_again(toy, upstream, tmp_path):
    _, _, requests = upstream
    root = tmp_path / "root"
    (root / "toys").mkdir(parents=True)
    (tmp_path / "ours.zip").rename(root / "toys" / "photos.zip")
    assert fetch_dataset(toy, root) == [root / "toys" / "table.csv", root / "toys" / "photos.zip"]
    assert requests == ["/table.csv"]
    fetch_dataset(toy, root)
    assert requests == ["/table.csv"]


@pytest.mark.parametrize("name", ["table.csv", "toy-0123.zip"])
def test_a_damaged_file_is_fetched_again(toy, tmp_path, name):
    root = tmp_path / "root"
    fetch_dataset(toy, root)
    path = root / "toys" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptDataError):
        verified_paths(toy, root)
    fetch_dataset(toy, root)
    assert verified_paths(toy, root)


def test_a_damaged_packing_of_ours_gives_way(toy, tmp_path):
    root = tmp_path / "root"
    (root / "toys").mkdir(parents=True)
    (root / "toys" / "photos.zip").write_bytes((tmp_path / "ours.zip").read_bytes()[:-5])
    fetch_dataset(toy, root)
    assert sorted(path.name for path in (root / "toys").iterdir()) == ["table.csv", "toy-0123.zip"]
    assert verified_paths(toy, root)["photos.zip"].name == "toy-0123.zip"


def test_another_file_from_upstream_is_refused_and_deleted(toy, upstream, tmp_path):
    _, folder, _ = upstream
    (folder / "table.csv").write_bytes(b"<html>moved</html>")
    with pytest.raises(
        CorruptDataError, match=r"download of http://.*/table.csv was refused: expected 10 bytes"
    ):
        fetch_dataset(toy, tmp_path / "root")
    assert list((tmp_path / "root" / "toys").iterdir()) == []


def test_an_archive_with_other_members_is_refused(toy, upstream, tmp_path):
    _, folder, _ = upstream
    pack(folder / "0123.zip", "toy-0123/", [("photos/3.txt", b"three")])
    with pytest.raises(CorruptDataError, match=r"its 3 members that match .* are not the published ones"):
        fetch_dataset(toy, tmp_path / "root")
    assert [path.name for path in (tmp_path / "root" / "toys").iterdir()] == ["table.csv"]


def test_a_failed_download_names_url_and_place(toy, upstream, tmp_path):
    _, folder, _ = upstream
    (folder / "table.csv").unlink()
    with pytest.raises(ConnectionError, match=r"could not download http://.*/table.csv: 404") as caught:
        fetch_dataset(toy, tmp_path / "root")
    assert str(tmp_path / "root" / "toys" / "table.csv") in str(caught.value)


def test_fetch_then_load_from_the_publishers_packing(real_data, upstream, tmp_path, monkeypatch):
    url, folder, _ = upstream
    root = real_data("sign")
    entry = data.describe("sign")
    (dataset,) = entry.datasets
    (file,) = dataset.files
    photos = read_members(root / dataset.folder / file.name, file.archive.members)
    with zipfile.ZipFile(folder / "commit.zip", "w") as archive:
        archive.writestr("Sign-Language-Digits-Dataset-4b09433/README.md", "")
        for name, content in reversed(photos.items()):
            archive.writestr(f"Sign-Language-Digits-Dataset-4b09433/{name}", content)
    served = replace(dataset, files=(replace(file, url=f"{url}/commit.zip"),))
    monkeypatch.setitem(registry._ENTRIES, "sign", registry._single(served))
    monkeypatch.setenv("MMFL_CACHE", str(tmp_path / "cache"))
    (path,) = data.fetch("sign", tmp_path / "root")
    assert path.name == file.archive.upstream_name
    assert data.check("sign", tmp_path / "root") == []
    fetched = data.load("sign", root=tmp_path / "root").tasks[0]
    monkeypatch.setenv("MMFL_CACHE", str(tmp_path / "other-cache"))
    packed = entry.build(root=root, **entry.options).tasks[0]
    assert fetched.inputs["image"].equal(packed.inputs["image"])
    assert fetched.labels.equal(packed.labels)
