"""Missing modalities: which clients or samples lose which inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfl_fast.data.arguments import require_choice, require_probability
from mmfl_fast.data.federation import Federation, Task
from mmfl_fast.data.seeding import stream

Mask = NDArray[np.bool_]


def with_missing(
    fed: Federation,
    rate: float,
    level: str = "client",
    seed: int = 0,
    rule: str = "subset",
    parts: Sequence[str] = ("train",),
) -> Federation:
    """Take modalities away at random: the inputs become zero, ``present`` becomes False.

    The draw depends on the seed, the task's name and its clients (or rows), not on the method that trains or
    on ``parts``. A larger rate takes away from the same clients and from more of them.

    Args:
        fed: any federation; modalities that are already absent stay absent.
        rate: the probability q of the rule, in [0, 1].
        level: ``"client"`` draws once per client, for its training and test rows alike (MFCPL);
            ``"sample"`` draws once per row (FedMVP).
        seed: integer >= 0.
        rule: ``"subset"``: incomplete with probability q, and then a uniformly drawn non-empty proper subset
            of the modalities held is lost, so that one always remains and uni-modal clients lose nothing.
            ``"independent"``: each modality is lost with probability q, the rule of the FedMultimodal
            benchmark; a client or row may keep none.
        parts: which rows lose their inputs, a selection of ``"train"`` and ``"test"``.

    Returns:
        A new federation; ``fed`` is unchanged.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    rate = require_probability("rate", rate)
    level = require_choice("level", level, ["client", "sample"])
    rule = require_choice("rule", rule, ["subset", "independent"])
    if isinstance(parts, str):
        raise TypeError(f"parts must be a sequence of 'train' and 'test', got the string {parts!r}")
    parts = [require_choice("part", part, ["train", "test"]) for part in parts]
    return replace(fed, tasks=tuple(_thin_out(task, rate, level, seed, rule, parts) for task in fed.tasks))


def _thin_out(task: Task, rate: float, level: str, seed: int, rule: str, parts: Sequence[str]) -> Task:
    rng = stream(seed, "missing", level, rule, task.name)
    held = _held_by_client(task) if level == "client" else task.present.numpy()
    draw = _lost_subset if rule == "subset" else _lost_independently
    lost = torch.from_numpy(draw(held, rate, rng))
    if level == "client":
        lost = lost[task.owner]
    affected = torch.zeros_like(task.is_train)
    if "train" in parts:
        affected |= task.is_train
    if "test" in parts:
        affected |= ~task.is_train
    lost &= affected[:, None] & task.present
    inputs = {m: _zeroed(x, lost[:, j]) for j, (m, x) in enumerate(task.inputs.items())}
    return replace(task, inputs=inputs, present=task.present & ~lost)


def _held_by_client(task: Task) -> Mask:
    """Return bool ``[K, M]``: client k has modality m in at least one row, train or test."""
    held = np.zeros((len(task.client_names), len(task.modalities)), dtype=np.bool_)
    np.logical_or.at(held, task.owner.numpy(), task.present.numpy())
    return held


def _lost_subset(held: Mask, rate: float, rng: np.random.Generator) -> Mask:
    """Draw for each row of ``held`` ``[G, M]`` whether it is incomplete, and the subset it then loses."""
    num_held = held.sum(axis=1)
    incomplete = (rng.random(len(held)) < rate) & (num_held > 1)
    # The h modalities held by a row are the bits of a code; 1 .. 2^h - 2 are its non-empty proper subsets.
    # Where h < 2 there is no such code; clamping keeps the arithmetic defined, `incomplete` discards it.
    num_subsets = np.maximum(2 ** num_held.astype(np.int64) - 2, 1)
    code = 1 + (rng.random(len(held)) * num_subsets).astype(np.int64)
    bit = held.cumsum(axis=1) - 1
    chosen = (code[:, None] >> np.maximum(bit, 0)) & 1
    lost: Mask = held & incomplete[:, None] & (chosen == 1)
    return lost


def _lost_independently(held: Mask, rate: float, rng: np.random.Generator) -> Mask:
    return held & (rng.random(held.shape) < rate)


def _zeroed(x: Tensor, lost: Tensor) -> Tensor:
    return x.masked_fill(lost.view(-1, *[1] * (x.dim() - 1)), 0.0) if bool(lost.any()) else x
