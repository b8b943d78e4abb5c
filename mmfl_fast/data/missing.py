"""Missing modalities: which clients or samples lose which inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfl_fast.data.arguments import require_choice
from mmfl_fast.data.federation import Federation, Task, require_federation
from mmfl_fast.data.missing_rates import Rate, missing_rates
from mmfl_fast.data.seeding import stream

Mask = NDArray[np.bool_]
Rates = NDArray[np.float64]
# What G clients or rows lose, from what they hold [G, M] and their rates [G, M].
Draw = Callable[[Mask, Rates, np.random.Generator], Mask]


def with_missing(
    fed: Federation,
    rate: Rate,
    level: str = "client",
    seed: int = 0,
    rule: str = "subset",
    parts: Sequence[str] = ("train",),
    spread: float = 0.0,
    test_rate: Rate | None = None,
) -> Federation:
    """Take modalities away at random: the inputs become zero, ``present`` becomes False.

    The draw depends on the seed, the task's name and its clients (or rows), not on the method that trains or
    on ``parts``. A larger rate takes away from the same clients and from more of them.

    Args:
        fed: any federation; modalities that are already absent stay absent.
        rate: the probability q of the rule, in [0, 1]. One number for all; a sequence with one per client, in
            the order of ``fed.clients``; a mapping from the names of clients (``"<task>/<client>"``); or a
            mapping from modalities. Whoever a mapping does not name loses nothing.
        level: ``"client"`` draws once per client, for its training and test rows alike (MFCPL);
            ``"sample"`` draws once per row (FedMVP).
        seed: integer >= 0.
        rule: ``"subset"``: incomplete with probability q, and then a uniformly drawn non-empty proper subset
            of the modalities held is lost, so that one always remains and uni-modal clients lose nothing.
            With rates by modality, one modality held is drawn uniformly and remains, and each other is lost
            with its own probability; with two modalities of one rate that is the same.
            ``"independent"``: each modality is lost with probability q, the rule of the FedMultimodal
            benchmark; a client or row may keep none.
            ``"count"``, at level ``"sample"`` and with one number as the rate: of the n rows of a task that
            have two or more modalities exactly ``int(q n)`` lose one, each modality in its turn: of images
            and texts half of them the one, half the other (FedMVP; papers.md 3.6). Training and test rows
            are counted apart. It is drawn over all clients, so a partition before or after changes nothing.
        parts: which rows lose their inputs, a selection of ``"train"`` and ``"test"``.
        spread: how unequal the clients are, in [0, 1): each one's rate is drawn from the Beta distribution
            with mean q and standard deviation ``spread * sqrt(q (1 - q))``, so that towards 1 the rates
            become 0 or 1. At level ``"sample"`` some clients then lack much and others little. At level
            ``"client"`` it makes the losses of a client coincide under rule ``"independent"``; the subset
            rule draws once per client, and a draw at a drawn rate is as likely as one at its mean.
        test_rate: the rate of the test rows, in the forms of ``rate``; these then lose their inputs whether
            or not ``parts`` names them. None: that of the training rows.

    Returns:
        A new federation; ``fed`` is unchanged.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    require_federation("fed", fed)
    level = require_choice("level", level, ["client", "sample"])
    rule = require_choice("rule", rule, ["subset", "independent", "count"])
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        came = f"the string {parts!r}" if isinstance(parts, str) else repr(parts)
        raise TypeError(f"parts must be a sequence of 'train' and 'test', got {came}")
    parts = [require_choice("part", part, ["train", "test"]) for part in parts]
    train = missing_rates(fed, "rate", rate, spread, seed)
    test = train if test_rate is None else missing_rates(fed, "test_rate", test_rate, spread, seed)
    by_modality = train.by_modality or test.by_modality
    draw = _lost_independently
    if rule == "subset":
        draw = _lost_but_one if by_modality else _lost_subset
    if rule == "count":
        _refuse_uncounted(level, spread, {"rate": rate, "test_rate": test_rate})
    tasks = []
    for number, task in enumerate(fed.tasks):
        lost = torch.zeros_like(task.present)
        for part, rates, rows in (("train", train, task.is_train), ("test", test, ~task.is_train)):
            if part in parts or (part == "test" and test_rate is not None):
                # A stream of its own each time: what the test rows lose follows from the same draw.
                rng = stream(seed, "missing", level, rule, task.name)
                if rule == "count":
                    lost |= _lost_by_count(task.present, rows, float(rates.of_tasks[number].flat[0]), rng)
                else:
                    lost |= rows[:, None] & _lost(task, level, rates.of_tasks[number], draw, rng)
        tasks.append(_without(task, lost & task.present))
    return replace(fed, tasks=tuple(tasks))


def _lost(task: Task, level: str, rates: Rates, draw: Draw, rng: np.random.Generator) -> Tensor:
    """Return bool ``[N, M]``: what every row would lose at ``rates`` ``[K, M]``."""
    if level == "client":
        return torch.from_numpy(draw(_held_by_client(task), rates, rng))[task.owner]
    return torch.from_numpy(draw(task.present.numpy(), rates[task.owner.numpy()], rng))


def _refuse_uncounted(level: str, spread: float, rates: Mapping[str, Rate | None]) -> None:
    if level != "sample":
        raise ValueError(f"rule 'count' needs level 'sample', got {level!r}")
    if spread:
        raise ValueError(f"rule 'count' takes no spread, got {spread}")
    for name, rate in rates.items():
        if isinstance(rate, (Mapping, Sequence, np.ndarray)):
            raise ValueError(f"rule 'count' takes one number as {name}, got {rate!r}")


def _lost_by_count(present: Tensor, counted: Tensor, rate: float, rng: np.random.Generator) -> Tensor:
    """Return bool ``[N, M]``: what the ``counted`` rows, bool ``[N]``, lose."""
    held = present.numpy()
    # Drawn for all rows, so that what the one part loses does not depend on which other part there is.
    order = rng.permutation(len(held))
    rows = order[counted.numpy()[order] & (held.sum(axis=1)[order] > 1)]
    rows = rows[: int(rate * rows.size)]
    # Rows that hold other modalities take their turns among those that they hold.
    turn = np.arange(rows.size) % held[rows].sum(axis=1)
    bit = held[rows].cumsum(axis=1) - 1
    lost = np.zeros_like(held)
    lost[rows] = held[rows] & (bit == turn[:, None])
    return torch.from_numpy(lost)


def _without(task: Task, lost: Tensor) -> Task:
    inputs = {m: _zeroed(x, lost[:, j]) for j, (m, x) in enumerate(task.inputs.items())}
    present = task.present & ~lost
    # Whoever completes the pairs must not find there what it is to make.
    raw = None if task.raw is None else task.raw.keeping(present.numpy())
    return replace(task, inputs=inputs, present=present, raw=raw)


def _held_by_client(task: Task) -> Mask:
    """Return bool ``[K, M]``: client k has modality m in at least one row, train or test."""
    held = np.zeros((len(task.client_names), len(task.modalities)), dtype=np.bool_)
    np.logical_or.at(held, task.owner.numpy(), task.present.numpy())
    return held


def _lost_subset(held: Mask, rates: Rates, rng: np.random.Generator) -> Mask:
    """Draw for each row of ``held`` whether it is incomplete, and the subset it then loses."""
    num_held = held.sum(axis=1)
    # Not by modality, so that all columns of the rates are alike.
    incomplete = (rng.random(len(held)) < rates[:, 0]) & (num_held > 1)
    # The h modalities held by a row are the bits of a code; 1 .. 2^h - 2 are its non-empty proper subsets.
    # Where h < 2 there is no such code; clamping keeps the arithmetic defined, `incomplete` discards it.
    num_subsets = np.maximum(2 ** num_held.astype(np.int64) - 2, 1)
    code = 1 + (rng.random(len(held)) * num_subsets).astype(np.int64)
    bit = held.cumsum(axis=1) - 1
    chosen = (code[:, None] >> np.maximum(bit, 0)) & 1
    lost: Mask = held & incomplete[:, None] & (chosen == 1)
    return lost


def _lost_but_one(held: Mask, rates: Rates, rng: np.random.Generator) -> Mask:
    """Draw the modality that remains, then each other by itself; drawn first, it is the same at all rates."""
    remains = np.where(held, rng.random(held.shape), -1.0).argmax(axis=1)
    lost = _lost_independently(held, rates, rng)
    lost[np.arange(len(held)), remains] = False
    return lost


def _lost_independently(held: Mask, rates: Rates, rng: np.random.Generator) -> Mask:
    return held & (rng.random(held.shape) < rates)


def _zeroed(x: Tensor, lost: Tensor) -> Tensor:
    return x.masked_fill(lost.view(-1, *[1] * (x.dim() - 1)), 0.0) if bool(lost.any()) else x
