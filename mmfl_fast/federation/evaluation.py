"""Personalised evaluation: every client's own model on its own test rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import f1_score
from torch import Tensor

from mmfl_fast.data import Client, Federation
from mmfl_fast.federation.algorithm import Algorithm, ClientState
from mmfl_fast.federation.batching import gather

_ROWS_PER_FORWARD = 4096


@dataclass(frozen=True)
class Evaluation:
    """Scores on the test rows.

    Attributes:
        accuracy: mean over the clients that have test rows.
        macro_f1: mean over the data sets of the macro F1 on the pooled test rows of a data set's clients.
        per_dataset: data set -> ``{"accuracy", "macro_f1"}``, accuracy as the mean over its clients.
        per_client: float64 ``[K]`` accuracy, NaN for a client without test rows.
    """

    accuracy: float
    macro_f1: float
    per_dataset: dict[str, dict[str, float]]
    per_client: Tensor

    def as_dict(self) -> dict[str, Any]:
        """The four fields by name."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "per_dataset": self.per_dataset,
            "per_client": self.per_client,
        }


def predictions(algorithm: Algorithm, params: ClientState, client: Client) -> Tensor:
    """Predicted classes ``[n]`` of a client's test rows."""
    classes = []
    with torch.no_grad():
        for rows in client.test_rows.split(_ROWS_PER_FORWARD):
            classes.append(algorithm.predict(params, gather(client.task, rows).inputs).argmax(dim=-1).cpu())
    return torch.cat(classes)


def evaluate(federation: Federation, predict: Callable[[Sequence[Client]], Sequence[Tensor]]) -> Evaluation:
    """Score every client that has test rows.

    Args:
        federation: whose test rows count.
        predict: predicted classes of each client given, in order.
    """
    tested = [c for c in federation.clients if len(c.test_rows)]
    predicted = dict(zip((c.index for c in tested), predict(tested), strict=True))
    per_client = torch.full((len(federation.clients),), torch.nan, dtype=torch.float64)
    per_dataset: dict[str, dict[str, float]] = {}
    for number, task in enumerate(federation.tasks):
        members = [c for c in tested if c.task_index == number]
        if not members:
            continue
        truth = [task.labels[c.test_rows.to(task.labels.device)].cpu() for c in members]
        for client, labels in zip(members, truth, strict=True):
            per_client[client.index] = (predicted[client.index] == labels).double().mean()
        f1 = f1_score(
            torch.cat(truth).numpy(),
            torch.cat([predicted[c.index] for c in members]).numpy(),
            average="macro",
            zero_division=0.0,
        )
        own = per_client[[c.index for c in members]]
        per_dataset[task.name] = {"accuracy": float(own.mean()), "macro_f1": float(f1)}
    scores = list(per_dataset.values())
    return Evaluation(
        accuracy=float(per_client.nanmean()),
        macro_f1=sum(s["macro_f1"] for s in scores) / len(scores) if scores else float("nan"),
        per_dataset=per_dataset,
        per_client=per_client,
    )
