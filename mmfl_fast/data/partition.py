"""Who holds which row, and who tests: Dirichlet label partitions, splits at random and in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_bool, require_integer, require_positive, suggestion
from mmfl_fast.data.federation import Federation, Task, require_federation
from mmfl_fast.data.seeding import stream

Owners = NDArray[np.int64]

MIN_TRAIN_ROWS = 2


def dirichlet(
    fed: Federation,
    clients: int | Mapping[str, int] = 20,
    alpha: float = 0.4,
    seed: int = 0,
    within_clients: bool = False,
) -> Federation:
    """Deal the rows of each task to new clients by label, and keep each row's side of the split.

    For every class the shares of the clients are drawn from Dir(alpha, ..., alpha) (M3Fed, with a = 1
    and 0.4; shares per class as in Yurochkin et al., ICML 2019). Training and test rows are dealt by the
    same shares, so a client is tested on the label mix that it trains on, and no row moves between train and
    test. Afterwards clients with fewer than two training rows are given rows of the largest clients; a
    client may be left without test rows where these are few.

    Args:
        fed: any federation; its clients are replaced.
        clients: number of clients of every task, or task name -> number; tasks not named keep their clients.
        alpha: concentration; the smaller, the fewer classes a client has. 1e6 is as good as IID: every client
            has the same share of every class.
        seed: the draw depends on this and on the names of the task and its clients only.
        within_clients: deal the rows of each client to ``clients`` parts of it, as FedMultimodal does with
            the subjects of UCI-HAR; a client without training rows stays whole.

    Returns:
        The same rows with clients named ``"0"``, ``"1"``, ...; parts of ``"ann"`` are ``"ann-0"``, ...

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is out of range, ``clients`` names an unknown task, or a task or client has too
            few training rows for two each.
    """
    require_federation("fed", fed)
    alpha = require_positive("alpha", alpha)
    require_bool("within_clients", within_clients)
    counts = clients_per_task(fed, clients)
    dealt = _dealt_within_clients if within_clients else _dealt_again
    return replace(
        fed,
        tasks=tuple(
            dealt(task, counts[task.name], alpha, seed) if task.name in counts else task for task in fed.tasks
        ),
    )


def dirichlet_owners(
    labels: NDArray[np.int64], num_clients: int, alpha: float, rng: np.random.Generator, minimum: int
) -> Owners:
    """Return the owner, 0..num_clients-1, of each row of ``labels`` ``[N]``; each owns ``minimum`` or more.

    Raises:
        ValueError: there are fewer than ``minimum * num_clients`` rows.
    """
    shares = _dirichlet_shares(labels, num_clients, alpha, rng)
    return _top_up(deal_by_shares(labels, shares, rng), num_clients, minimum, rng)


def deal_by_shares(
    labels: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> Owners:
    """Return the owner of each row: a class is shuffled and cut at its cumulative ``shares`` ``[C, K]``."""
    owner = np.empty(labels.size, dtype=np.int64)
    for label, share in enumerate(shares):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(share)[:-1] * rows.size)
        owner[rows] = np.searchsorted(cuts, np.arange(rows.size), side="right")
    return owner


def holdout(owner: Owners, seed: int) -> NDArray[np.bool_]:
    """Return who trains, bool ``[N]``: 80 % of the rows of each owner, drawn at random; the rest tests.

    The number of test rows is a fifth of the client's rows, rounded, but at least one; a client with a
    single row keeps it for training.
    """
    sizes = np.bincount(owner)
    num_test = np.where(sizes > 1, np.maximum(1, (2 * sizes + 5) // 10), 0)
    is_train: NDArray[np.bool_] = random_rank(owner, stream(seed, "holdout")) >= num_test[owner]
    return is_train


def holdout_last(group: Owners, sequence: Owners) -> NDArray[np.bool_]:
    """Return who trains, bool ``[N]``, so that in every group what tests came last.

    Sequences stay whole. The last ones of a group test, at least one: as many as come nearest to a fifth of
    its rows, which is never all of them. A group with a single sequence keeps it for training.

    Args:
        group: ``[N]``, such as the person and the activity as one number.
        sequence: ``[N]``, the uninterrupted recording that a row was cut from, counted in time.
    """
    is_train = np.ones(group.size, dtype=np.bool_)
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        numbers, sizes = np.unique(sequence[rows], return_counts=True)
        if numbers.size > 1:
            # Entry k: so many rows test if the last k + 1 sequences do.
            num_test = np.cumsum(sizes[::-1])
            last = int(np.abs(5 * num_test - rows.size).argmin()) + 1
            is_train[rows[np.isin(sequence[rows], numbers[-last:])]] = False
    return is_train


def random_rank(owner: Owners, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return for each row its place, from 0, in a random order of the rows of its owner."""
    order = np.lexsort((rng.random(owner.size), owner))
    sizes = np.bincount(owner)
    rank = np.empty(owner.size, dtype=np.int64)
    rank[order] = np.arange(owner.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def clients_per_task(fed: Federation, clients: int | Mapping[str, int]) -> dict[str, int]:
    """Return task name -> number of new clients, of the tasks that are to be dealt again.

    Raises:
        TypeError, ValueError: a number is no integer >= 1, or ``clients`` names an unknown task.
    """
    names = [task.name for task in fed.tasks]
    if not isinstance(clients, Mapping):
        return dict.fromkeys(names, require_integer("clients", clients, minimum=1))
    for name in clients:
        if name not in names:
            raise ValueError(f"clients names the unknown task {name!r}{suggestion(str(name), names)}")
    return {name: require_integer(f"clients[{name!r}]", k, minimum=1) for name, k in clients.items()}


def _dealt_again(task: Task, num_clients: int, alpha: float, seed: int) -> Task:
    rng = stream(seed, "dirichlet", task.name)
    try:
        owner = _deal_both_sides(task.labels.numpy(), task.is_train.numpy(), num_clients, alpha, rng)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}, training rows: {error}") from None
    return replace(
        task, owner=torch.from_numpy(owner), client_names=tuple(str(k) for k in range(num_clients))
    )


def _dealt_within_clients(task: Task, num_parts: int, alpha: float, seed: int) -> Task:
    labels, is_train, old_owner = task.labels.numpy(), task.is_train.numpy(), task.owner.numpy()
    owner = np.empty_like(old_owner)
    names: list[str] = []
    for k, name in enumerate(task.client_names):
        rows = np.flatnonzero(old_owner == k)
        if not is_train[rows].any():
            owner[rows] = len(names)
            names.append(name)
            continue
        rng = stream(seed, "dirichlet", task.name, name)
        try:
            part = _deal_both_sides(labels[rows], is_train[rows], num_parts, alpha, rng)
        except ValueError as error:
            raise ValueError(f"task {task.name!r}, training rows of client {name!r}: {error}") from None
        owner[rows] = len(names) + part
        names += [f"{name}-{p}" for p in range(num_parts)]
    return replace(task, owner=torch.from_numpy(owner), client_names=tuple(names))


def _deal_both_sides(
    labels: NDArray[np.int64],
    is_train: NDArray[np.bool_],
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
) -> Owners:
    """Deal training and test rows by the same shares, so that no row moves between them."""
    shares = _dirichlet_shares(labels, num_clients, alpha, rng)
    owner = np.empty(labels.size, dtype=np.int64)
    owner[is_train] = _top_up(deal_by_shares(labels[is_train], shares, rng), num_clients, MIN_TRAIN_ROWS, rng)
    owner[~is_train] = deal_by_shares(labels[~is_train], shares, rng)
    return owner


def _dirichlet_shares(
    labels: NDArray[np.int64], num_clients: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    return rng.dirichlet(np.full(num_clients, alpha), size=int(labels.max()) + 1)


def _top_up(owner: Owners, num_clients: int, minimum: int, rng: np.random.Generator) -> Owners:
    if owner.size < minimum * num_clients:
        raise ValueError(
            f"{owner.size} rows are too few for {num_clients} clients with at least {minimum} each"
        )
    owner = owner.copy()
    counts = np.bincount(owner, minlength=num_clients)
    while counts.min() < minimum:
        # A client below the minimum means that the largest is above it, so a gift never makes a new poor one.
        poorest, richest = counts.argmin(), counts.argmax()
        owner[rng.choice(np.flatnonzero(owner == richest))] = poorest
        counts[poorest] += 1
        counts[richest] -= 1
    return owner
