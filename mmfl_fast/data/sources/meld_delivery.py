"""MELD in the two modalities that its tables hold: what is said, and how it is timed.

No audio or video comes with the tables, but when an utterance starts and ends does: how long and how fast it
is, how soon it follows. That tells less of the emotion than the words, yet more than nothing. The emotion and
sentiment columns feed no input, and no utterance knows a later one. Dialogues do not cross the published
split; episodes do, and so do the six main characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_choice
from mmfl_fast.data.assemble import capped, split_rows, split_task
from mmfl_fast.data.cache import load_features
from mmfl_fast.data.dataset import DataSet, Features, Root
from mmfl_fast.data.entry import Entry
from mmfl_fast.data.federation import Federation
from mmfl_fast.data.partition import dirichlet
from mmfl_fast.data.sources.meld import MELD, emotion_labels, read_rows

Rows = Sequence[Mapping[str, str]]
Table = NDArray[np.float32]

TOKENS, TOKEN_WIDTH = 24, 64  # 95 % of the utterances have no more tokens
DELIVERY = 7
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]+")

# The emotions of the FedMultimodal benchmark.
FOUR_EMOTIONS = ("neutral", "joy", "anger", "sadness")

# Bounds against wrong time stamps, some of which are minutes off.
_LONGEST, _SHORTEST = 20.0, 0.3  # s, of an utterance
_EARLIEST, _LATEST = -5.0, 10.0  # s, of its start after the end of the one before
_FASTEST = 50.0  # characters per second

# Speakers with more than ten utterances in all three parts together, the most talkative first. A few stand
# for whoever plays the part, like "All" or "Woman".
_SPEAKERS = (
    "Joey; Ross; Rachel; Phoebe; Monica; Chandler; Janice; Carol; Tag; Emily; All; Mona; Doug; "
    "Joanna; Pete; Frank; Mark; Susan; Richard; Paul; Woman; Gunther; Danny; Mr. Treeger; Mr. "
    "Geller; Phoebe Sr; Mrs. Geller; Elizabeth; Julie; Director; Eric; Mike; Man; Guy; Dr. Green; "
    "David; Gary; Chip; Earl; Barry; Lydia; Kate; Nurse; Dina; Jill; Chloe; Dana; Charlie; "
    "Bonnie; Leslie; Janine; The Casting Director; Mr. Tribbiani; Dr. Long; Joshua; Kim; Cassie; "
    "Kristen; Tour Guide; Steve; Cliff; Julio; Katie; Ben; Russell; Bob; Policeman; Duncan; "
    "Issac; Kathy; Stanley"
)
SPEAKERS = tuple(_SPEAKERS.split("; "))


def _extract(files: Mapping[str, Path]) -> Features:
    """Take tokens and timing of the utterances of train, dev and test; the last is the test part."""
    parts = {name: read_rows(path) for name, path in files.items()}
    rows = [row for part in parts.values() for row in part]
    place = np.concatenate([_places(part) for part in parts.values()])
    return Features(
        inputs={"text": _tokens(rows), "delivery": _delivery(rows, place)},
        labels=emotion_labels(rows),
        people=np.asarray([SPEAKERS.index(s) if (s := row["Speaker"]) in SPEAKERS else -1 for row in rows]),
        is_train=np.repeat([not name.startswith("test") for name in parts], [*map(len, parts.values())]),
    )


def _places(rows: Rows) -> NDArray[np.int64]:
    """Return how many utterances of its dialogue precede each row, ``[N]``."""
    places: list[int] = []
    for k, row in enumerate(rows):
        goes_on = k > 0 and row["Dialogue_ID"] == rows[k - 1]["Dialogue_ID"]
        places.append(places[-1] + 1 if goes_on else 0)
    return np.asarray(places)


def _tokens(rows: Rows) -> Table:
    """Return the last TOKENS words and marks of each utterance, ``[N, TOKENS, TOKEN_WIDTH]``.

    A token is the hashed runs of two to four of its characters, of unit length. Short utterances have zeros
    in front, so that a recurrent encoder ends on the last word.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    words = [_TOKEN.findall(row["Utterance"].lower())[-TOKENS:] for row in rows]
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys(word for said in words for word in said))}
    hashing = HashingVectorizer(
        n_features=TOKEN_WIDTH, analyzer="char_wb", ngram_range=(2, 4), norm="l2", dtype=np.float32
    )
    vectors = hashing.transform(vocabulary).toarray()
    tokens = np.zeros((len(rows), TOKENS, TOKEN_WIDTH), dtype=np.float32)
    for k, said in enumerate(words):
        if said:
            tokens[k, -len(said) :] = vectors[[vocabulary[word] for word in said]]
    return tokens


def _delivery(rows: Rows, place: NDArray[np.int64]) -> Table:
    """Return ``[N, DELIVERY]``, from the time stamps and the number of characters.

    Columns: log duration, pause since the utterance before (negative where they overlap), characters per
    second, log duration of the one before, whether its speaker is the same, whether there is none, log
    place in the dialogue. Times in seconds; log is log(1 + x).
    """
    start, end = (np.asarray([_seconds(row[column]) for row in rows]) for column in ("StartTime", "EndTime"))
    duration = np.clip(end - start, 0, _LONGEST)
    length = np.asarray([len(row["Utterance"]) for row in rows])
    same = np.asarray([row["Speaker"] == rows[k - 1]["Speaker"] for k, row in enumerate(rows)])
    follows = place > 0
    columns = [
        np.log1p(duration),
        np.where(follows, np.clip(start - np.roll(end, 1), _EARLIEST, _LATEST), 0),
        np.minimum(length / np.maximum(duration, _SHORTEST), _FASTEST),
        np.where(follows, np.log1p(np.roll(duration, 1)), 0),
        follows & same,
        ~follows,
        np.log1p(place),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _seconds(stamp: str) -> float:
    """Read ``"hours:minutes:seconds,milliseconds"``."""
    hours, minutes, seconds = stamp.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def build(
    *,
    root: Root,
    emotions: str,
    alpha: float | None,
    clients: int | None,
    samples_per_client: int | None,
    seed: int,
) -> Federation:
    """Make each speaker with more than ten utterances a client, or deal all utterances by Dir(alpha).

    Training and development part train, the test part tests; no row changes sides. A speaker may have no
    test rows.

    Args:
        root: folder of the data sets.
        emotions: ``"all"`` seven, or ``"four"``: neutral, joy, anger and sadness, as in FedMultimodal; the
            utterances with others are left out.
        alpha: concentration of the Dirichlet label partition; None for one client per speaker.
        clients: number of clients of the partition, 20 if None.
        samples_per_client: keep at most so many utterances of a client, drawn at random.
        seed: fixes partition and cap.
    """
    emotions = require_choice("emotions", emotions, ["all", "four"])
    if alpha is None and clients is not None:
        raise ValueError(f"clients={clients!r} needs alpha; without it 'meld-delivery' has one per speaker")
    features = load_features(MELD_TIMED, root)
    num_classes = len(MELD.classes)
    if emotions == "four":
        features = _with_emotions(features, FOUR_EMOTIONS)
        num_classes = len(FOUR_EMOTIONS)
    if alpha is None and features.people is not None:
        features = features.take(np.flatnonzero(features.people >= 0))
    is_train = split_rows(features, "published", seed)
    people = SPEAKERS if alpha is None else None
    task = split_task("meld-delivery", features, num_classes, is_train, people)
    fed = Federation(task.name, (task,))
    if alpha is not None:
        fed = dirichlet(fed, MELD_TIMED.default_clients if clients is None else clients, alpha, seed)
    return capped(fed, samples_per_client, seed)


def _with_emotions(features: Features, names: Sequence[str]) -> Features:
    """Return the samples of some emotions, which become classes 0, 1, ... in the order of ``names``."""
    kept = [list(MELD.classes).index(name) for name in names]
    new_label = np.full(len(MELD.classes), -1)
    new_label[kept] = np.arange(len(kept))
    features = replace(features, labels=new_label[features.labels])
    return features.take(np.flatnonzero(features.labels >= 0))


MELD_TIMED = DataSet(
    name="meld-delivery",
    description="utterances with seven emotions: 24 tokens of text and 7 numbers of timing; 71 speakers",
    modalities={"text": (TOKENS, TOKEN_WIDTH), "delivery": (DELIVERY,)},
    classes=MELD.classes,
    licence=MELD.licence,
    source=MELD.source,
    folder=MELD.folder,
    files=MELD.files,
    default_clients=20,
    extract=_extract,
    features_version="tokens-24x64-delivery-7-1",
    people=SPEAKERS,
    num_train=11098,
)

MELD_DELIVERY = Entry(
    name=MELD_TIMED.name,
    description=MELD_TIMED.description,
    modality=", ".join(MELD_TIMED.modalities),
    licence=MELD_TIMED.licence,
    source=MELD_TIMED.source,
    options={"emotions": "all", "alpha": None, "clients": None, "samples_per_client": None, "seed": 0},
    datasets=(MELD_TIMED,),
    build=build,
)
