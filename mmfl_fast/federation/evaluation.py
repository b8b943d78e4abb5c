"""Personalised evaluation: every client's own model on its own test rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor

from mmfl_fast.data import Client, Federation
from mmfl_fast.federation.algorithm import Algorithm, ClientState
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.sampling import evaluated_clients

_ROWS_PER_FORWARD = 4096


@dataclass(frozen=True)
class Evaluation:
    """Scores on the test rows.

    All but ``accuracy`` pool the test rows of a data set's clients, each predicted by its client's model: the
    view of a shared model, where ``accuracy`` gives small clients the weight of large ones.

    Attributes:
        accuracy: mean over the clients tested.
        macro_f1: mean over the data sets of the macro F1.
        uar: mean over the data sets of the unweighted average recall, the mean over the classes that occur
            among the test rows.
        pooled_accuracy: share of all test rows that are predicted right.
        per_dataset: data set -> these four; accuracy as the mean over its clients. With ``test_alone`` also
            ``"<data set>, <modality> alone"``, which no other number takes in.
        per_client: float64 ``[K]`` accuracy, NaN for a client that was not tested.
    """

    accuracy: float
    macro_f1: float
    uar: float
    pooled_accuracy: float
    per_dataset: dict[str, dict[str, float]]
    per_client: Tensor

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def predictions(algorithm: Algorithm, params: ClientState, client: Client) -> Tensor:
    """Predicted classes ``[n]`` of a client's test rows, on its device."""
    classes = []
    with torch.no_grad():
        for rows in client.test_rows.split(_ROWS_PER_FORWARD):
            classes.append(algorithm.predict(params, gather(client.task, rows).inputs).argmax(dim=-1))
    return torch.cat(classes)


def evaluate(
    federation: Federation,
    predict: Callable[[Sequence[Client]], Sequence[Tensor]],
    tested: Sequence[Client] | None = None,
) -> Evaluation:
    """Score clients on their test rows.

    Args:
        federation: whose test rows count.
        predict: predicted classes of each client given, in order.
        tested: clients with test rows, in the order of their index; None takes all that there are.
    """
    if tested is None:
        tested = evaluated_clients(federation.clients, None, seed=0)
    predicted = dict(zip((c.index for c in tested), predict(tested), strict=True))
    per_client = torch.full((len(federation.clients),), torch.nan, dtype=torch.float64)
    per_dataset: dict[str, dict[str, float]] = {}
    right, rows = 0.0, 0
    by_task: dict[int, list[Client]] = {}
    for client in tested:
        by_task.setdefault(client.task_index, []).append(client)
    for number, task in enumerate(federation.tasks):
        members = by_task.get(number)
        if not members:
            continue
        labels_of_all = task.labels.cpu()
        truth = [labels_of_all[c.test_rows] for c in members]
        for client, labels in zip(members, truth, strict=True):
            per_client[client.index] = (predicted[client.index] == labels).double().mean()
        own = per_client[[c.index for c in members]]
        pooled_truth = torch.cat(truth).numpy()
        pooled = _pooled_scores(pooled_truth, torch.cat([predicted[c.index] for c in members]).numpy())
        per_dataset[task.name] = {"accuracy": float(own.mean()), **pooled}
        right += pooled["pooled_accuracy"] * len(pooled_truth)
        rows += len(pooled_truth)

    def mean_of_datasets(name: str) -> float:
        return fmean(scores[name] for scores in per_dataset.values()) if per_dataset else math.nan

    return Evaluation(
        accuracy=float(per_client[[c.index for c in tested]].mean()),
        macro_f1=mean_of_datasets("macro_f1"),
        uar=mean_of_datasets("uar"),
        pooled_accuracy=right / rows if rows else math.nan,
        per_dataset=per_dataset,
        per_client=per_client,
    )


def _pooled_scores(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[str, float]:
    return {
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
        "uar": float(recall_score(truth, predicted, labels=np.unique(truth), average="macro")),
        "pooled_accuracy": float(accuracy_score(truth, predicted)),
    }
