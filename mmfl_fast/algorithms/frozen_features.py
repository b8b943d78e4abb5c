"""What the methods on features of frozen models share: AdamW, which rows count, one model per task.

Features come as token sequences ``[T, D]`` or as vectors; other shapes are flattened to vectors.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast.algorithms.task_models import TaskAverage
from mmfl_fast.data import Client
from mmfl_fast.federation import (
    Adam,
    AlgorithmConfig,
    Batch,
    ClientState,
    Phase,
)


class FrozenFeaturesConfig(AlgorithmConfig):
    """Options of local training; the defaults are those of FedMVP's released code (papers.md 3.4, 3.6)."""

    incomplete: Literal["keep", "drop"] = Field(
        "drop", description="training rows that lack a modality: with inputs of zero, or left out"
    )
    batch_size: int = Field(64, ge=1, description="rows per optimiser step")
    local_epochs: int = Field(10, ge=1, description="local epochs per round")
    learning_rate: float = Field(2e-4, gt=0, description="local learning rate")
    momentum: float = Field(0.0, ge=0, le=0, description="none: the optimiser is AdamW")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, of AdamW")


class FrozenFeatures(TaskAverage):
    """FedAvg inside each task; subclasses bring the model and the loss."""

    Config = FrozenFeaturesConfig

    def broadcast(self, state: Any, client: Client) -> ClientState:
        """Send the model of the client's task, beside what is the client's own."""
        return {**super().broadcast(state, client), **state.personal.get(client.index)}

    def client_phases(self) -> list[Phase]:
        """Local epochs of AdamW; as in the code, the cosine's period is their number, counted in steps."""
        c = self.config
        optimiser = Adam(c.learning_rate, weight_decay=c.weight_decay, cosine_period=c.local_epochs)
        return [Phase("local", self.loss, self.trained, optimiser, c.batch_size)] * int(c.local_epochs)

    @property
    def trained(self) -> tuple[str, ...]:
        """Parts that local training moves."""
        return ("*",)

    def counted_labels(self, batch: Batch) -> Tensor:
        """Labels ``[B]``, -100 for rows that ``incomplete: drop`` leaves out.

        A batch keeps its place, so that every method takes the same steps.
        """
        if self.config.incomplete == "keep":
            return batch.labels
        return torch.where(batch.inputs.present.all(dim=1), batch.labels, -100)


def tokens(x: Tensor) -> Tensor:
    """``[B, T, D]``; T is 1 for anything but a token sequence."""
    return x if x.dim() == 3 else x.flatten(1).unsqueeze(1)
