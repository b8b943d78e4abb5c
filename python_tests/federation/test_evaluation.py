import math

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from mmfl_fast import data
from mmfl_fast.federation.evaluation import evaluate


def federation():
    labels = np.array([0, 1, 0, 1, 2, 2])
    first = data.from_arrays(
        {"x": np.eye(6)},
        labels,
        ["a", "a", "a", "b", "b", "c"],
        split=["test", "test", "train", "test", "test", "train"],
        name="first",
    )
    second = data.from_arrays(
        {"x": np.eye(2)}, [0, 1], ["only", "only"], split=["train", "test"], name="second"
    )
    return data.merge([first, second])


def test_scores_are_means_over_clients_and_pooled_f1():
    answers = {"first/a": [0, 0], "first/b": [1, 0], "second/only": [1]}
    scores = evaluate(federation(), lambda clients: [torch.tensor(answers[c.name]) for c in clients])
    np.testing.assert_allclose(scores.per_client, [0.5, 0.5, np.nan, 1.0])
    assert scores.accuracy == (0.5 + 0.5 + 1.0) / 3
    assert scores.per_dataset["first"]["accuracy"] == 0.5
    expected = f1_score([0, 1, 1, 2], [0, 0, 1, 0], average="macro", zero_division=0.0)
    assert math.isclose(scores.per_dataset["first"]["macro_f1"], expected)
    assert math.isclose(scores.macro_f1, (expected + 1.0) / 2)


def test_recall_is_of_the_classes_that_occur_and_pooled_accuracy_of_all_rows():
    # Nobody in "first" has class 2 among the test rows that client b answers with it.
    labels = np.array([0, 0, 0, 1, 0, 1])
    fed = data.merge(
        [
            data.from_arrays({"x": np.eye(6)}, labels, list("aaabbb"), ["test"] * 5 + ["train"], "first"),
            data.from_arrays({"x": np.eye(2)}, [0, 1], ["only"] * 2, ["train", "test"], "second"),
        ]
    )
    answers = {"first/a": [0, 0, 1], "first/b": [2, 0], "second/only": [1]}
    scores = evaluate(fed, lambda clients: [torch.tensor(answers[c.name]) for c in clients])
    assert scores.per_dataset["first"]["uar"] == (3 / 4 + 0) / 2
    assert scores.uar == ((3 / 4 + 0) / 2 + 1) / 2
    assert scores.per_dataset["first"]["pooled_accuracy"] == 3 / 5
    assert math.isclose(scores.pooled_accuracy, 4 / 6)
    assert set(scores.as_dict()) >= {"accuracy", "macro_f1", "uar", "pooled_accuracy", "per_dataset"}
    whole = evaluate(federation(), lambda clients: [torch.zeros(len(c.test_rows)).long() for c in clients])
    assert whole.per_dataset["first"]["uar"] == balanced_accuracy_score([0, 1, 1, 2], [0, 0, 0, 0])
