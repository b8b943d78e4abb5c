"""Completion of absent modalities before training, by the client that lacks them (FedMVP; papers.md 3.9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfl_fast.data.arguments import require_choice, require_non_negative
from mmfl_fast.data.federation import Client, Federation, Task, require_federation
from mmfl_fast.data.pairs.pair_generator import PairGenerator, require_generator
from mmfl_fast.data.seeding import stream

Rows = NDArray[np.float32]


def complete(
    fed: Federation,
    backend: str = "feature",
    *,
    original: Federation | None = None,
    generator: PairGenerator | None = None,
    noise: float = 1.0,
    seed: int = 0,
) -> Federation:
    """Fill in what training rows lack; test rows stay as they are.

    ``"feature"`` stands for a generative model where none is at hand: every client regresses the absent
    modalities on the present ones and the class, by ridge regression on its own complete training rows, and
    adds normal noise of the residuals' standard deviation. It reads no other client's rows and nothing of the
    side it fills in. ``"generator"`` works on raw image-text pairs (:func:`from_pairs`): a generative model
    makes the absent raw side from the present one, row by row, and the task's frozen encoder then gives its
    features. ``"oracle"`` puts back the true inputs, the upper bound of any generator; ``"none"`` leaves
    everything as it is.

    Args:
        fed: some of whose rows lack modalities, as :func:`with_missing` returns it.
        backend: ``"feature"``, ``"generator"``, ``"oracle"`` or ``"none"``.
        original: for ``"oracle"``: the federation before modalities were taken away.
        generator: for ``"generator"``: the models and their options.
        noise: factor of the noise of ``"feature"``; 0 fills in the expected features.
        seed: integer >= 0, of that noise and of generated images.

    Returns:
        A new federation. Rows without any modality stay incomplete, and with ``"feature"`` also those of a
        client that has fewer than two complete training rows.

    Raises:
        TypeError, ValueError: an argument is not as described, ``original`` has other rows, or a task that
            lacks something has no raw pairs for the generator.
        MissingModelError, UnusableModelError, MissingLibraryError: of the generator, as in
            :meth:`PairGenerator.completed`.
    """
    require_federation("fed", fed)
    backend = require_choice("backend", backend, ["feature", "generator", "oracle", "none"])
    noise = require_non_negative("noise", noise)
    if backend == "none":
        return fed
    if backend == "feature":
        if original is not None:
            raise ValueError("original is the oracle's; backend 'feature' must not see it")
        tasks = list(fed.tasks)
        for number, task in enumerate(tasks):
            inputs = {m: x.clone() for m, x in task.inputs.items()}
            present = task.present.clone()
            for client in (c for c in fed.clients if c.task_index == number):
                _regress(client, inputs, present, noise, stream(seed, "completion", client.name))
            tasks[number] = replace(task, inputs=inputs, present=present)
        return replace(fed, tasks=tuple(tasks))
    if backend == "generator":
        if generator is None:
            raise ValueError("backend 'generator' needs generator, a mf.data.PairGenerator")
        require_generator(generator)
        return replace(fed, tasks=tuple(_generated(task, generator, seed) for task in fed.tasks))
    if original is None:
        raise ValueError("backend 'oracle' needs original, the federation before modalities were taken away")
    if [_identity(t) for t in fed.tasks] != [_identity(t) for t in original.tasks]:
        raise ValueError("original must have the tasks, rows and modalities of fed; got others")
    return replace(fed, tasks=tuple(map(_put_back, fed.tasks, original.tasks)))


def _identity(task: Task) -> tuple[object, ...]:
    shapes = tuple((m, tuple(x.shape)) for m, x in task.inputs.items())
    return task.name, shapes, tuple(task.labels.tolist())


def _put_back(task: Task, original: Task) -> Task:
    trained = task.is_train
    inputs = {m: x.clone() for m, x in task.inputs.items()}
    for m, x in inputs.items():
        x[trained] = original.inputs[m][trained]
    present = task.present.clone()
    present[trained] = original.present[trained]
    raw = None if original.raw is None else original.raw.keeping(present.numpy())
    return replace(task, inputs=inputs, present=present, raw=raw)


def _generated(task: Task, generator: PairGenerator, seed: int) -> Task:
    held = task.present.sum(dim=1)
    rows = (task.is_train & (held > 0) & (held < len(task.modalities))).nonzero().flatten()
    if not len(rows):
        return task
    if task.raw is None:
        raise ValueError(
            f"task {task.name!r} has no raw image-text pairs, on which backend 'generator' works; "
            "mf.data.from_pairs builds such tasks, and data sets like 'emoji' are such"
        )
    # Whatever the pairs hold, the generator sees what the rows have.
    pairs = generator.completed(task.raw.pairs.keeping(task.present.numpy()), rows.tolist(), seed)
    raw = replace(task.raw, pairs=pairs)
    inputs = {m: x.clone() for m, x in task.inputs.items()}
    for m, made in raw.take(rows.tolist()).inputs().items():
        inputs[m][rows] = torch.from_numpy(made)
    present = task.present.clone()
    present[rows] = True
    return replace(task, inputs=inputs, present=present, raw=raw)


def _regress(
    client: Client, inputs: dict[str, Tensor], present: Tensor, noise: float, rng: np.random.Generator
) -> None:
    """Fill in a client's rows, in place."""
    from sklearn.linear_model import Ridge

    rows = client.train_rows
    held = present[rows]
    known = rows[held.all(dim=1)]
    if len(known) < 2:
        return
    for pattern in held[~held.all(dim=1) & held.any(dim=1)].unique(dim=0):
        lacking = rows[(held == pattern).all(dim=1)]
        there = [m for m, p in zip(inputs, pattern.tolist(), strict=True) if p]
        for m in (m for m in inputs if m not in there):
            model = Ridge().fit(_regressors(client, inputs, there, known), _flat(inputs[m], known))
            residual = _flat(inputs[m], known) - model.predict(_regressors(client, inputs, there, known))
            filled = model.predict(_regressors(client, inputs, there, lacking))
            filled = filled + noise * residual.std(axis=0) * rng.standard_normal(filled.shape)
            inputs[m][lacking] = torch.from_numpy(filled).to(inputs[m]).reshape(-1, *inputs[m].shape[1:])
        present[lacking] = True


def _regressors(client: Client, inputs: dict[str, Tensor], names: Sequence[str], rows: Tensor) -> Rows:
    """The present features of some rows beside their class, one column per class."""
    classes = torch.nn.functional.one_hot(client.task.labels[rows], client.task.num_classes)
    return np.hstack([*(_flat(inputs[m], rows) for m in names), classes.float().numpy()])


def _flat(x: Tensor, rows: Tensor) -> Rows:
    flat: Rows = x[rows].flatten(1).numpy()
    return flat
