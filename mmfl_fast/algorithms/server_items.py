"""The items on which FedMVP's server compares its clients' models (papers.md 3.5 and 3.9)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.data import Task


def server_items(task: Task, source: str, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return modality -> ``[items, ...]``: ``count`` items, or as many as there are, class by class in turns.

    Args:
        task: as the clients train on it.
        source: ``"prompts"``: what was made from the names of the classes before training
            (:func:`mmfl_fast.data.with_server_items`), the paper's; ``"moments"``: :func:`class_draws`;
            ``"rows"``: :func:`training_rows`; ``"auto"``: prompts where such items were made, else rows.
        count: at least 1.
        generator: on the CPU, of what is drawn.

    Raises:
        ValueError: ``"prompts"``, and none were made.
    """
    if source == "prompts" and not task.server_items:
        raise ValueError(
            f"items_from 'prompts': task {task.name!r} has no items made from prompts. "
            "mf.data.with_server_items, or completion.server_items in a YAML, makes them where there are raw "
            "image-text pairs and generators; 'moments' and 'rows' need neither"
        )
    if source == "moments":
        return class_draws(task, count, generator)
    if source == "rows" or not task.server_items:
        return training_rows(task, count, generator)
    return {name: x[:count] for name, x in task.server_items.items()}


def class_draws(task: Task, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Features drawn around the mean of their class, feature by feature at its spread inside the class.

    Both are of the training rows: in a deployment three secure sums for each class and feature, so that the
    server sees no row; but a class of one row is that row. The modalities of an item have nothing but
    the class in common. A modality that no training row of the class has is zero, and so is everything
    where there are no training rows.
    """
    labels = task.labels.cpu()
    classes = labels[task.is_train].unique()
    chosen = torch.arange(count) % max(1, len(classes))
    items = {}
    for column, (name, x) in enumerate(task.inputs.items()):
        known = task.is_train & task.present[:, column].cpu()
        drawn = torch.zeros(count, *x.shape[1:])
        for place, label in enumerate(classes):
            rows = (known & (labels == label)).nonzero().flatten()
            own = x[rows.to(x.device)].cpu().double()
            noise = torch.randn(int((chosen == place).sum()), *x.shape[1:], generator=generator)
            if len(rows):
                drawn[chosen == place] = (own.mean(dim=0) + own.std(dim=0, correction=0) * noise).float()
        items[name] = drawn.to(x.device)
    return items


def training_rows(task: Task, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Training rows of the task, drawn at random, which no server of a real federation has.

    They are complete, or as complete as any training row of the task is.
    """
    held = torch.where(task.is_train, task.present.sum(dim=1).cpu(), -1)
    rows = (held == held.max()).nonzero().flatten()
    rows = rows[torch.randperm(len(rows), generator=generator)]
    labels = task.labels.cpu()[rows]
    by_class = torch.argsort(labels, stable=True)
    sizes = labels.bincount()
    turn = torch.empty_like(labels)
    turn[by_class] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[by_class]]
    chosen = rows[torch.argsort(turn, stable=True)[:count]]
    return {name: x[chosen.to(x.device)] for name, x in task.inputs.items()}
