"""Inputs of zero mean and unit scale, from the training rows alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmfl_fast.data import Federation, Task

# A feature that hardly moves keeps its smallness: dividing by its own spread would blow up noise.
_SMALLEST_RELATIVE_SPREAD = 0.1


def standardise(federation: Federation) -> Federation:
    """Standardise each modality of each task, feature by feature.

    Means and spreads come from the training rows that have the modality (in a deployment: three secure
    sums per feature). A spread below a tenth of the modality's root mean square spread is raised to it.
    Absent modalities stay zero.
    """
    return Federation(federation.name, tuple(_standardise_task(t) for t in federation.tasks))


def _standardise_task(task: Task) -> Task:
    inputs = {}
    for column, (name, values) in enumerate(task.inputs.items()):
        present = task.present[:, column]
        known = values[task.is_train & present].double()
        if len(known) == 0:
            inputs[name] = values
            continue
        mean = known.mean(dim=0)
        variance = known.var(dim=0, unbiased=False)
        scale = torch.maximum(variance, _SMALLEST_RELATIVE_SPREAD**2 * variance.mean()).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        standard = ((values.double() - mean) / scale).float()
        standard[~present] = 0
        inputs[name] = standard
    return replace(task, inputs=inputs)
