"""Batches of one client, or of several side by side."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmfl_fast.data import Client, Task
from mmfl_fast.federation.algorithm import Batch, Inputs

PADDING_LABEL = -100


def shuffled_rows(client: Client, generator: np.random.Generator) -> Tensor:
    """A client's training rows in random order: the row numbers of one pass."""
    # By NumPy: a torch call hands Python's lock over, and a client has many such small steps.
    return torch.from_numpy(client.train_rows.numpy()[generator.permutation(client.num_train)])


def gather(task: Task, rows: Tensor) -> Batch:
    """The batch of some rows of a task: ``rows`` ``[B]`` gives ``[B, ...]``."""
    rows = rows.to(task.labels.device)
    values = {name: tensor[rows] for name, tensor in task.inputs.items()}
    return Batch(Inputs(values, task.present[rows]), task.labels[rows])


def gather_stacked(task: Task, rows: Tensor) -> Batch:
    """Batches of k clients side by side: ``rows`` ``[k, B]`` on the task's device gives ``[k, B, ...]``.

    Row -1 is padding: zero, without modalities, and labelled -100.
    """
    padding = rows < 0
    batch = gather(task, rows.clamp(min=0).reshape(-1))
    values = {
        name: t.reshape(*rows.shape, *t.shape[1:]).masked_fill(
            padding.reshape(*rows.shape, *[1] * (t.dim() - 1)), 0
        )
        for name, t in batch.inputs.values.items()
    }
    present = batch.inputs.present.reshape(*rows.shape, -1) & ~padding.unsqueeze(-1)
    labels = batch.labels.reshape(rows.shape).masked_fill(padding, PADDING_LABEL)
    return Batch(Inputs(values, present), labels)
