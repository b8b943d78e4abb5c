"""Inputs of zero mean and unit scale, from the training rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmfl_fast.data import Federation, Task
from mmfl_fast.data.mapped import written_and_mapped

# A feature that hardly moves keeps its smallness: dividing by its own spread would blow up noise.
_SMALLEST_RELATIVE_SPREAD = 0.1


# Of which some are in memory at a time.
_ROWS = 65_536


def standardise(federation: Federation) -> Federation:
    """Standardise each modality of each task, feature by feature.

    Means and spreads come from the training rows that have the modality (in a deployment: three secure
    sums per feature). A spread below a tenth of the modality's root mean square spread is raised to it.
    Absent modalities stay zero. Rows in a file get a temporary file. The server's items are put on the scale
    of the rows.
    """
    return Federation(federation.name, tuple(_standardise_task(t) for t in federation.tasks))


def _standardise_task(task: Task) -> Task:
    inputs, items = {}, dict(task.server_items)
    for column, (name, values) in enumerate(task.inputs.items()):
        present = task.present[:, column]
        chunks = [slice(first, first + _ROWS) for first in range(0, len(values), _ROWS)]
        moments = _moments(values, task.is_train & present, chunks)
        if moments is None:
            inputs[name] = values
            continue
        mean, variance = moments
        scale = torch.maximum(variance, _SMALLEST_RELATIVE_SPREAD**2 * variance.mean()).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if name in items:
            items[name] = ((items[name].double() - mean) / scale).float()
        standard = (
            ((values[rows].double() - mean) / scale).float().masked_fill_(_missing(present[rows], values), 0)
            for rows in chunks
        )
        if task.mapped:
            inputs[name] = written_and_mapped(standard, tuple(values.shape))
        else:
            inputs[name] = torch.empty_like(values, memory_format=torch.contiguous_format)
            for rows, chunk in zip(chunks, standard, strict=True):
                inputs[name][rows] = chunk
    return replace(task, inputs=inputs, server_items=items)


def _missing(present: Tensor, values: Tensor) -> Tensor:
    return ~present.reshape(-1, *[1] * (values.dim() - 1))


def _moments(values: Tensor, known: Tensor, chunks: Sequence[slice]) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of the known rows, float64; None if there are none."""
    count = int(known.sum())
    if not count:
        return None
    mean = torch.stack([values[rows][known[rows]].double().sum(dim=0) for rows in chunks]).sum(dim=0) / count
    squares = [(values[rows][known[rows]].double() - mean).square_().sum(dim=0) for rows in chunks]
    return mean, torch.stack(squares).sum(dim=0) / count
