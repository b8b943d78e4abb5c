"""From the features of a data set to a task: pooled samples, dealt to clients, split 80/20 inside each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_integer, require_positive
from mmfl_fast.data.dataset import Features
from mmfl_fast.data.federation import Task
from mmfl_fast.data.partition import MIN_TRAIN_ROWS, dirichlet_owners, holdout, random_rank
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
    inputs: Mapping[str, NDArray[np.float32]] = features.inputs
    return Task(
        name=name,
        inputs={modality: torch.from_numpy(x[rows]) for modality, x in inputs.items()},
        present=torch.ones(rows.size, len(inputs), dtype=torch.bool),
        labels=torch.from_numpy(features.labels[rows]),
        num_classes=num_classes,
        owner=torch.from_numpy(owner[rows]),
        is_train=torch.from_numpy(holdout(owner[rows], seed)),
        client_names=tuple(client_names),
    )


def _capped(name: str, owner: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """Return the rows to keep, ascending: at most ``limit`` of each owner, drawn at random."""
    if limit is None:
        return np.arange(owner.size)
    limit = require_integer("samples_per_client", limit, minimum=_MIN_ROWS)
    return np.flatnonzero(random_rank(owner, stream(seed, "cap", name)) < limit)
