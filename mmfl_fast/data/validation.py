"""A validation part: what options are chosen on, so that no test row has a say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_choice, require_probability
from mmfl_fast.data.federation import Federation, require_federation
from mmfl_fast.data.partition import random_rank
from mmfl_fast.data.seeding import stream


def validation_part(fed: Federation, share: float = 0.2, level: str = "row", seed: int = 0) -> Federation:
    """Let a part of the training rows test, and drop the test rows.

    Whoever tries options on the result has not looked at the test rows. MFCPL's weights are chosen so
    (papers.md 4.7).

    Args:
        fed: any federation.
        share: part of the training rows, or of the clients that have any, that tests instead; in (0, 1).
            Rounded, but at least one, and never all.
        level: ``"row"``: of each client so many rows, drawn at random; a client with a single row trains
            on it. ``"client"``: of each task so many whole clients, for sets whose test rows are those of
            other people, such as HAPT with its published split.
        seed: the draw depends on this and on the names of the tasks only.

    Returns:
        The training rows alone, with the same clients; one that held nothing but test rows holds nothing.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``share`` or ``level`` is out of range, or nothing would be left to train or to test.
    """
    require_federation("fed", fed)
    share = require_probability("share", share)
    if share in (0.0, 1.0):
        raise ValueError(f"share must lie between 0 and 1, both excluded; got {share}")
    chosen = {"row": _rows, "client": _rows_of_clients}[require_choice("level", level, ["row", "client"])]
    tasks = []
    for task in fed.tasks:
        kept = task.take(torch.from_numpy(np.flatnonzero(task.is_train.numpy())))
        tests = chosen(kept.owner.numpy(), share, stream(seed, "validation", task.name))
        if not tests.any():
            raise ValueError(
                f"task {task.name!r} has no validation part: at level {level!r} it takes two training "
                f"{level}s{' of a client' if level == 'row' else ''}"
            )
        tasks.append(replace(kept, is_train=torch.from_numpy(~tests)))
    return replace(fed, tasks=tuple(tasks))


def _rows(owner: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    count = _part(np.bincount(owner), share)
    tests: NDArray[np.bool_] = random_rank(owner, rng) < count[owner]
    return tests


def _rows_of_clients(owner: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    training = np.unique(owner)
    return np.isin(owner, rng.permutation(training)[: int(_part(np.array(training.size), share))])


def _part(sizes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """So many of ``sizes``: rounded, of two or more at least one and never all."""
    part: NDArray[np.int64] = np.clip(np.rint(share * sizes).astype(np.int64), 1, sizes - 1)
    return part
