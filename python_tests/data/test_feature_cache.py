from __future__ import annotations

import hashlib
import logging
from dataclasses import replace

import numpy as np
import pytest

from mmfl_fast.data.cache import cache_folder, cache_key, load_features
from mmfl_fast.data.dataset import DataSet, Features, MissingDataError, SourceFile

CONTENT = b"12345"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Return a data set of one file under tmp_path / "root", and the list of its extractor's calls."""
    monkeypatch.setenv("MMFL_CACHE", str(tmp_path / "cache"))
    calls = []

    def extract(files):
        calls.append(files)
        values = np.frombuffer(files["toy.bin"].read_bytes(), dtype=np.uint8)
        return Features(
            inputs={"image": values[:, None].astype(np.float32), "text": np.ones((5, 2, 3), np.float32)},
            labels=values.astype(np.int64) % 2,
            people=np.arange(5),
            is_train=values > ord("2"),
            sequence=values // 2 * 2,
        )

    dataset = DataSet(
        name="toy",
        description="five bytes",
        modalities={"image": (1,), "text": (2, 3)},
        classes={"even": 2, "odd": 3},
        licence="CC0",
        source="here",
        folder="toys",
        files=(SourceFile("toy.bin", 5, hashlib.sha256(CONTENT).hexdigest(), url="http://unused"),),
        default_clients=2,
        extract=extract,
        features_version="1",
    )
    (tmp_path / "root" / "toys").mkdir(parents=True)
    (tmp_path / "root" / "toys" / "toy.bin").write_bytes(CONTENT)
    return dataset, calls


def entries(tmp_path):
    return list((tmp_path / "cache").iterdir())


def same(a, b):
    return (
        list(a.inputs) == list(b.inputs)
        and all(np.array_equal(a.inputs[m], b.inputs[m]) for m in a.inputs)
        and all(
            np.array_equal(getattr(a, name), getattr(b, name))
            for name in ("labels", "people", "is_train", "sequence")
        )
    )


def test_features_are_extracted_once(toy, tmp_path):
    dataset, calls = toy
    first = load_features(dataset, tmp_path / "root")
    second = load_features(dataset, tmp_path / "root")
    assert len(calls) == 1
    assert same(first, second)
    assert second.inputs["text"].dtype == np.float32
    assert second.labels.dtype == np.int64
    assert second.is_train.tolist() == [False, False, True, True, True]
    assert [path.name for path in entries(tmp_path)] == [f"toy-{cache_key(dataset)}.safetensors"]


def test_a_hit_needs_no_source_files(toy, tmp_path):
    dataset, _ = toy
    load_features(dataset, tmp_path / "root")
    (tmp_path / "root" / "toys" / "toy.bin").unlink()
    assert load_features(dataset, tmp_path / "root").labels.size == 5


def test_any_strides_are_kept(toy, tmp_path):
    dataset, _ = toy
    lying = np.arange(30, dtype=np.float32).reshape(3, 2, 5).transpose(2, 1, 0)
    strided = replace(
        dataset,
        extract=lambda _: Features(inputs={"image": lying}, labels=np.arange(10)[::-2], people=np.arange(5)),
    )
    for _ in range(2):
        features = load_features(strided, tmp_path / "root")
        assert np.array_equal(features.inputs["image"], lying)
        assert features.labels.tolist() == [9, 7, 5, 3, 1]


@pytest.mark.parametrize("unknown", ["people", "is_train", "sequence"])
def test_what_the_publisher_does_not_say_stays_unknown(toy, tmp_path, unknown):
    dataset, _ = toy
    silent = replace(dataset, extract=lambda files: replace(dataset.extract(files), **{unknown: None}))
    load_features(silent, tmp_path / "root")
    again = load_features(silent, tmp_path / "root")
    assert [name for name in ("people", "is_train", "sequence") if getattr(again, name) is None] == [unknown]


def test_modalities_keep_their_order(toy, tmp_path):
    dataset, _ = toy
    names = ["zoom", "audio", "motion", "text"]
    many = replace(
        dataset,
        extract=lambda _: Features(
            {m: np.ones((2, k + 1), np.float32) for k, m in enumerate(names)}, np.arange(2)
        ),
    )
    assert list(load_features(many, tmp_path / "root").inputs) == names
    assert list(load_features(many, tmp_path / "root").inputs) == names


@pytest.mark.parametrize("change", ["version", "checksum"])
def test_the_key_follows_extractor_and_files(toy, change):
    dataset, _ = toy
    other = {
        "version": replace(dataset, features_version="2"),
        "checksum": replace(dataset, files=(replace(dataset.files[0], sha256="0" * 64),)),
    }[change]
    assert cache_key(other) != cache_key(dataset)


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "empty", "other file"])
def test_a_damaged_entry_is_reported_and_made_anew(toy, tmp_path, caplog, damage):
    dataset, calls = toy
    first = load_features(dataset, tmp_path / "root")
    (entry,) = entries(tmp_path)
    content = bytearray(entry.read_bytes())
    content[-3] ^= 0x10
    entry.write_bytes(
        {
            "cut": entry.read_bytes()[:-1],
            "flipped bit": bytes(content),
            "empty": b"",
            "other file": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        second = load_features(dataset, tmp_path / "root")
    assert len(calls) == 2
    assert str(entry) in caplog.text
    assert same(first, second)
    assert load_features(dataset, tmp_path / "root").labels.size == 5
    assert len(calls) == 2


def test_a_failed_write_leaves_no_entry(toy, tmp_path, monkeypatch):
    dataset, _ = toy

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        load_features(dataset, tmp_path / "root")
    assert entries(tmp_path) == []


def test_a_missing_file_leaves_no_entry(toy, tmp_path):
    dataset, calls = toy
    with pytest.raises(MissingDataError, match=r"toy\.bin"):
        load_features(dataset, tmp_path / "elsewhere")
    assert not (tmp_path / "cache").exists()
    assert calls == []


def test_the_folder_is_the_users_cache_unless_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("MMFL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MMFL_CACHE")
    assert cache_folder().name == "mmfl_fast"
