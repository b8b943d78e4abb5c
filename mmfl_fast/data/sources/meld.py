"""MELD, text part: utterances of dialogues with seven emotions, as hashed words and word pairs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.dataset import DataSet, Features, SourceFile

_UPSTREAM = (
    "https://raw.githubusercontent.com/declare-lab/MELD/2d2011b409d3ca2d7e94460cd007d434b1d0a102/data/MELD"
)
_CLASSES = {
    "neutral": 6436,
    "joy": 2308,
    "surprise": 1636,
    "anger": 1607,
    "sadness": 1002,
    "disgust": 361,
    "fear": 358,
}
WIDTH = 1024


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the utterances of one table, column name -> text, in the published order."""
    with path.open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def emotion_labels(rows: Sequence[Mapping[str, str]]) -> NDArray[np.int64]:
    """Return the emotion of each row as an index into the classes, ``[N]``."""
    classes = list(_CLASSES)
    return np.asarray([classes.index(row["Emotion"]) for row in rows])


def _extract(files: Mapping[str, Path]) -> Features:
    """Hash words and word pairs of train, dev and test into WIDTH signed buckets of unit length."""
    from sklearn.feature_extraction.text import HashingVectorizer

    rows = [row for path in files.values() for row in read_rows(path)]
    # The default pattern drops words of one letter, among them "I".
    hashing = HashingVectorizer(
        n_features=WIDTH, ngram_range=(1, 2), norm="l2", token_pattern=r"(?u)\b\w+\b", dtype=np.float32
    )
    return Features(
        inputs={"text": hashing.transform([row["Utterance"] for row in rows]).toarray()},
        labels=emotion_labels(rows),
    )


def _file(part: str, num_bytes: int, sha256: str) -> SourceFile:
    name = f"{part}_sent_emo.csv"
    return SourceFile(name, num_bytes, sha256, url=f"{_UPSTREAM}/{name}")


MELD = DataSet(
    name="meld",
    description="utterances with seven emotions, words and word pairs hashed to width 1024",
    modalities={"text": (WIDTH,)},
    classes=_CLASSES,
    licence="GPL-3.0",
    source="Poria et al., ACL 2019; Chen et al. (EmotionLines), LREC 2018; github.com/declare-lab/MELD",
    folder="meld_text",
    files=(
        _file("train", 1119290, "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db"),
        _file("dev", 121640, "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c"),
        _file("test", 294526, "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888"),
    ),
    default_clients=20,
    extract=_extract,
    features_version="hashed-words-1024-1",
)
