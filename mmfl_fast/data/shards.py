"""Label-sorted shards: the split in which a client has few classes and every client as many rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_integer
from mmfl_fast.data.federation import Federation, Task, require_federation
from mmfl_fast.data.partition import MIN_TRAIN_ROWS, Owners, clients_per_task, deal_by_shares
from mmfl_fast.data.seeding import stream


def shards(
    fed: Federation,
    clients: int | Mapping[str, int] | None = None,
    per_client: int = 2,
    seed: int = 0,
) -> Federation:
    """Sort each task's training rows by label, cut them into equal shards and deal these to new clients.

    As in McMahan et al. (AISTATS 2017); FedMVP has it on Flowers (papers.md 3.6, 3.9). Its released code
    cuts 102 shards and deals out 20 of them; here there are as many as are dealt, so that no row is lost.
    The order of rows inside a class is drawn. Test rows of a class are dealt in the shares of its training
    rows, so that a client is tested on the label mix that it trains on, and no row moves between train and
    test; a client may be left without test rows where these are few.

    Args:
        fed: any federation; its clients are replaced.
        clients: number of clients of every task, or task name -> number, where tasks not named keep their
            clients; None: as many as each task has.
        per_client: shards of a client. One shard holds rows of one class or of neighbouring ones.
        seed: the draw depends on this and on the names of the tasks only.

    Returns:
        The same rows with clients named ``"0"``, ``"1"``, ...

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is out of range, ``clients`` names an unknown task, or a task has too few
            training rows for a row in every shard and two at every client.
    """
    require_federation("fed", fed)
    per_client = require_integer("per_client", per_client, minimum=1)
    if clients is None:
        clients = {task.name: len(task.client_names) for task in fed.tasks}
    counts = clients_per_task(fed, clients)
    return replace(
        fed,
        tasks=tuple(
            _dealt(task, counts[task.name], per_client, seed) if task.name in counts else task
            for task in fed.tasks
        ),
    )


def _dealt(task: Task, num_clients: int, per_client: int, seed: int) -> Task:
    labels, is_train = task.labels.numpy(), task.is_train.numpy()
    num_train, num_shards = int(is_train.sum()), num_clients * per_client
    if num_train < max(num_shards, MIN_TRAIN_ROWS * num_clients):
        raise ValueError(
            f"task {task.name!r}: {num_train} training rows are too few for {num_clients} clients with "
            f"{per_client} shards each and at least {MIN_TRAIN_ROWS} rows"
        )
    rng = stream(seed, "shards", task.name)
    owner = np.empty(labels.size, dtype=np.int64)
    owner[is_train] = _shard_owners(labels[is_train], num_clients, per_client, rng)
    shares = _shares(labels[is_train], owner[is_train], task.num_classes, num_clients)
    owner[~is_train] = deal_by_shares(labels[~is_train], shares, rng)
    names = tuple(str(k) for k in range(num_clients))
    return replace(task, owner=torch.from_numpy(owner), client_names=names)


def _shard_owners(
    labels: NDArray[np.int64], num_clients: int, per_client: int, rng: np.random.Generator
) -> Owners:
    order = np.lexsort((rng.random(labels.size), labels))
    dealt = rng.permutation(np.repeat(np.arange(num_clients), per_client))
    owner = np.empty(labels.size, dtype=np.int64)
    for client, rows in zip(dealt, np.array_split(order, dealt.size), strict=True):
        owner[rows] = client
    return owner


def _shares(
    labels: NDArray[np.int64], owner: Owners, num_classes: int, num_clients: int
) -> NDArray[np.float64]:
    """Share of each class's rows that each client has, ``[C, K]``; equal ones of a class without rows."""
    counts = np.zeros((num_classes, num_clients))
    np.add.at(counts, (labels, owner), 1.0)
    counts[counts.sum(axis=1) == 0] = 1.0
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares
