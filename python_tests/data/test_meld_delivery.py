from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score

import mmfl_fast.data as data
from mmfl_fast.data.sources.meld_delivery import MELD_TIMED, SPEAKERS, TOKENS

COLUMNS = ["Utterance", "Speaker", "Emotion", "Dialogue_ID", "StartTime", "EndTime"]
ROWS = [
    ["Oh no!", "Ross", "fear", "0", "00:00:01,000", "00:00:02,000"],
    ["You\u2019ll be fine.", "Monica", "neutral", "0", "00:00:02,500", "00:00:04,500"],
    ["OH no!", "Monica", "joy", "0", "00:00:04,000", "00:00:05,500"],
    [" ".join(f"w{k}" for k in range(30)), "A Stranger", "anger", "1", "00:00:09,000", "01:00:00,000"],
]


def extract(folder, rows, columns=COLUMNS):
    """Extract from three tables of the published layout: all rows in train, the first in dev and test."""
    for part, taken in [("train", rows), ("dev", rows[:1]), ("test", rows[:1])]:
        with (folder / f"{part}_sent_emo.csv").open("w", encoding="utf-8", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(columns)
            writer.writerows(taken)
    return MELD_TIMED.extract({file.name: folder / file.name for file in MELD_TIMED.files})


def test_the_published_layout(tmp_path):
    features = extract(tmp_path, ROWS)
    classes = list(MELD_TIMED.classes)
    assert [classes[label] for label in features.labels] == [
        "fear",
        "neutral",
        "joy",
        "anger",
        "fear",
        "fear",
    ]
    assert [SPEAKERS[k] if k >= 0 else None for k in features.people] == [
        "Ross",
        "Monica",
        "Monica",
        None,
        "Ross",
        "Ross",
    ]
    assert features.is_train.tolist() == [True] * 5 + [False]


def test_timing_by_hand(tmp_path):
    delivery = extract(tmp_path, ROWS).inputs["delivery"]
    log = np.log1p
    assert delivery[:4] == pytest.approx(
        np.array(
            [
                [log(1.0), 0, 6 / 1.0, 0, 0, 1, 0],
                [log(2.0), 0.5, 15 / 2.0, log(1.0), 0, 0, log(1)],
                [log(1.5), -0.5, 6 / 1.5, log(2.0), 1, 0, log(2)],
                [log(20.0), 0, 109 / 20, 0, 0, 1, 0],
            ]
        ),
        abs=1e-5,
    )
    # The first utterance of dev follows none, though its dialogue has the number of one in train.
    assert delivery[4].tolist() == delivery[0].tolist()


def test_tokens_are_unit_vectors_aligned_at_the_end(tmp_path):
    text = extract(tmp_path, ROWS).inputs["text"]
    lengths = np.linalg.norm(text, axis=2)
    assert np.flatnonzero(lengths[0] > 0).tolist() == [TOKENS - 3, TOKENS - 2, TOKENS - 1]
    assert (lengths[1] > 0).sum() == 4
    assert lengths[lengths > 0] == pytest.approx(np.ones((lengths > 0).sum()), abs=1e-5)
    # Capitals do not matter, words that share letters are alike, others are not.
    assert np.array_equal(text[0], text[2])
    words = text[3]
    assert words[-1] @ words[-2] > 0.3
    assert abs(text[0, -2] @ text[0, -1]) < 0.3
    assert (lengths[3] > 0).all()


def test_no_input_knows_emotion_sentiment_or_what_comes_later(tmp_path):
    before = extract(tmp_path, ROWS)
    felt = [[*row[:2], "disgust", *row[3:], "negative"] for row in ROWS]
    after = extract(tmp_path, felt, [*COLUMNS, "Sentiment"])
    assert set(after.labels.tolist()) == {list(MELD_TIMED.classes).index("disgust")}
    longer = [*ROWS[:3], ["And now?", "Joey", "joy", "0", "00:00:05,000", "00:00:09,000"]]
    extended = extract(tmp_path, longer)
    for modality, x in before.inputs.items():
        assert np.array_equal(x, after.inputs[modality])
        assert np.array_equal(x[:3], extended.inputs[modality][:3])


@pytest.fixture(scope="module")
def root(real_data):
    return real_data("meld-delivery")


def test_utterances_and_published_split(root):
    assert data.check("meld-delivery", root) == []
    task = data.load("meld-delivery", root=root, alpha=1.0, clients=12).tasks[0]
    assert len(task.client_names) == 12
    counts = [torch.bincount(task.labels[side]).tolist() for side in (task.is_train, ~task.is_train)]
    assert counts == [[5180, 1906, 1355, 1262, 794, 293, 308], [1256, 402, 281, 345, 208, 68, 50]]
    assert torch.equal(task.labels, data.load("meld", root=root).tasks[0].labels)
    assert {m: tuple(x.shape[1:]) for m, x in task.inputs.items()} == {"text": (24, 64), "delivery": (7,)}


def test_speakers_are_clients(root):
    fed = data.load("meld-delivery", root=root)
    (task,) = fed.tasks
    held = torch.bincount(task.owner)
    assert [int(held[task.client_names.index(name)]) for name in ("Joey", "Ross", "Stanley")] == [
        2070,
        2048,
        11,
    ]
    assert (len(held), int(held.min()), int(held.sum())) == (71, 11, 12918)
    assert all(client.num_train > 0 for client in fed.clients)


def test_four_emotions(root):
    every, four = (
        data.load("meld-delivery", root=root, emotions=emotions).tasks[0] for emotions in ("all", "four")
    )
    classes = list(MELD_TIMED.classes)
    kept = [classes.index(name) for name in ("neutral", "joy", "anger", "sadness")]
    rows = torch.isin(every.labels, torch.tensor(kept))
    assert four.num_classes == 4
    assert [kept[label] for label in four.labels] == every.labels[rows].tolist()
    assert torch.equal(four.inputs["delivery"], every.inputs["delivery"][rows])
    assert torch.equal(four.is_train, every.is_train[rows])


def test_timing_tells_more_of_the_emotion_than_chance(root):
    task = data.load("meld-delivery", root=root, alpha=1.0).tasks[0]
    x, y, is_train = task.inputs["delivery"].numpy(), task.labels.numpy(), task.is_train.numpy()
    x = (x - x[is_train].mean(axis=0)) / x[is_train].std(axis=0)
    model = LogisticRegression(C=0.01, class_weight="balanced").fit(x[is_train], y[is_train])
    predicted = model.predict(x[~is_train])
    recall = recall_score(y[~is_train], predicted, average="macro")
    generator = np.random.default_rng(0)
    by_chance = [
        recall_score(generator.permutation(y[~is_train]), predicted, average="macro") for _ in range(50)
    ]
    assert np.mean(by_chance) == pytest.approx(1 / 7, abs=0.01)
    assert recall > np.mean(by_chance) + 4 * np.std(by_chance)
