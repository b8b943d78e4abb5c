"""From the features of a data set to a task.

As M3Fed does: pooled samples, dealt to clients, then split 80/20 at random inside each (`dirichlet_task`,
`natural_task`). Or with a split that was made before anything is dealt (`split_rows`, `split_task`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_choice, require_integer, require_positive
from mmfl_fast.data.dataset import Features
from mmfl_fast.data.federation import Federation, Task
from mmfl_fast.data.partition import MIN_TRAIN_ROWS, dirichlet_owners, holdout, holdout_last, random_rank
from mmfl_fast.data.seeding import stream

# The least number of rows whose 80/20 split leaves MIN_TRAIN_ROWS and one test row.
_MIN_ROWS = MIN_TRAIN_ROWS + 1


def dirichlet_task(
    name: str,
    features: Features,
    num_classes: int,
    *,
    clients: int,
    alpha: float,
    seed: int,
    samples_per_client: int | None = None,
) -> Task:
    """Deal all samples to ``clients`` by label, then split 80/20 inside each, as M3Fed does.

    Args:
        name: of the task; part of the random streams, so tasks are dealt independently.
        features: of the data set, official training and test parts together.
        num_classes: number of classes of the label space.
        clients: number of clients.
        alpha: concentration of the Dirichlet shares.
        seed: integer >= 0.
        samples_per_client: draw this many of a client's samples at random if it has more.

    Raises:
        TypeError, ValueError: a number is out of range, or there are fewer than 3 samples per client.
    """
    alpha = require_positive("alpha", alpha)
    clients = require_integer("clients", clients, minimum=1)
    rng = stream(seed, "dirichlet", name)
    try:
        owner = dirichlet_owners(features.labels, clients, alpha, rng, _MIN_ROWS)
    except ValueError as error:
        raise ValueError(f"task {name!r}: {error}") from None
    client_names = [str(k) for k in range(clients)]
    return _task(name, features, num_classes, owner, client_names, seed, samples_per_client)


def natural_task(
    name: str,
    features: Features,
    num_classes: int,
    people: Sequence[str],
    *,
    seed: int,
    samples_per_client: int | None = None,
) -> Task:
    """Make each person a client and split 80/20 inside each; otherwise as :func:`dirichlet_task`."""
    if features.people is None:
        raise ValueError(f"task {name!r} has no natural clients")
    return _task(name, features, num_classes, features.people, people, seed, samples_per_client)


def split_rows(features: Features, split: str, seed: int) -> NDArray[np.bool_]:
    """Return who trains, bool ``[N]``.

    Args:
        features: of the data set.
        split: ``"published"``; ``"time"``: the last recordings of each class of each person test
            (:func:`holdout_last`); ``"random"``: a fifth of each person's samples, or of each class's where
            people are unknown, drawn by ``seed``.
        seed: integer >= 0.

    Raises:
        ValueError: an unknown split, or one for which the data set lacks what is needed.
    """
    needed = {"published": features.is_train, "time": features.sequence, "random": features.labels}
    split = require_choice("split", split, [word for word, array in needed.items() if array is not None])
    labels, people = features.labels, features.people
    if split == "published" and features.is_train is not None:
        return features.is_train
    if split == "time" and features.sequence is not None:
        group = labels if people is None else people * (int(labels.max()) + 1) + labels
        return holdout_last(group, features.sequence)
    return holdout(labels if people is None else people, seed)


def split_task(
    name: str,
    features: Features,
    num_classes: int,
    is_train: NDArray[np.bool_],
    people: Sequence[str] | None = None,
) -> Task:
    """Make each person a client, or all rows one client that is yet to be dealt; keep the split."""
    if people is None:
        return _assembled(name, features, num_classes, np.zeros_like(features.labels), ["all"], is_train)
    if features.people is None:
        raise ValueError(f"task {name!r} has no natural clients")
    return _assembled(name, features, num_classes, features.people, people, is_train)


def capped(fed: Federation, samples_per_client: int | None, seed: int) -> Federation:
    """Keep at most so many rows of each client, drawn at random, and the share of them that trains.

    Raises:
        TypeError, ValueError: ``samples_per_client`` is neither None nor an integer >= 3.
    """
    if samples_per_client is None:
        return fed
    limit = require_integer("samples_per_client", samples_per_client, minimum=_MIN_ROWS)
    return replace(fed, tasks=tuple(_capped_task(task, limit, seed) for task in fed.tasks))


def _capped_task(task: Task, limit: int, seed: int) -> Task:
    owner, is_train = task.owner.numpy(), task.is_train.numpy()
    sizes = np.bincount(owner, minlength=len(task.client_names))
    train_sizes = np.bincount(owner[is_train], minlength=sizes.size)
    num_train = np.rint(limit * train_sizes / np.maximum(sizes, limit)).astype(np.int64)
    num_train = np.maximum(num_train, np.minimum(train_sizes, MIN_TRAIN_ROWS))
    allowed = np.where(is_train, num_train[owner], (np.minimum(sizes, limit) - num_train)[owner])
    rank = random_rank(2 * owner + is_train, stream(seed, "cap", task.name))
    return task.take(torch.from_numpy(np.flatnonzero(rank < allowed)))


def _task(
    name: str,
    features: Features,
    num_classes: int,
    owner: NDArray[np.int64],
    client_names: Sequence[str],
    seed: int,
    samples_per_client: int | None,
) -> Task:
    rows = _capped(name, owner, samples_per_client, seed)
    return _assembled(
        name, features.take(rows), num_classes, owner[rows], client_names, holdout(owner[rows], seed)
    )


def _assembled(
    name: str,
    features: Features,
    num_classes: int,
    owner: NDArray[np.int64],
    client_names: Sequence[str],
    is_train: NDArray[np.bool_],
) -> Task:
    return Task(
        name=name,
        inputs={modality: torch.from_numpy(x) for modality, x in features.inputs.items()},
        present=torch.ones(features.labels.size, len(features.inputs), dtype=torch.bool),
        labels=torch.from_numpy(features.labels),
        num_classes=num_classes,
        owner=torch.from_numpy(owner),
        is_train=torch.from_numpy(is_train),
        client_names=tuple(client_names),
    )


def _capped(name: str, owner: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """Return the rows to keep, ascending: at most ``limit`` of each owner, drawn at random."""
    if limit is None:
        return np.arange(owner.size)
    limit = require_integer("samples_per_client", limit, minimum=_MIN_ROWS)
    return np.flatnonzero(random_rank(owner, stream(seed, "cap", name)) < limit)
