"""The model that M3Fed and its baselines share.

``phi`` maps each modality to a common width, ``f`` is the meta learner, ``T`` projects into the common
low-rank space, ``psi`` classifies (M3Fed, section 3; papers.md 1.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from mmfl_fast import nn
from mmfl_fast.data import Federation, Task
from mmfl_fast.federation import (
    Algorithm,
    AlgorithmConfig,
    Batch,
    ClientState,
    Context,
    Inputs,
    ParameterTable,
    Sgd,
    part_of,
)


class BackboneConfig(AlgorithmConfig):
    """Options of the shared model; the defaults are M3Fed's (section 4.2)."""

    width: int = Field(512, ge=1, description="width of the meta learner f")
    layers: int = Field(4, ge=1, description="layers of the meta learner f")
    operator_rows: int = Field(384, ge=1, description="dimension of the common space")
    projection: bool = Field(True, description="off: classify f's output directly (Table 4)")
    learning_rate: float = Field(0.01, gt=0, description="eta_p, of phi, T and psi")
    global_learning_rate: float = Field(0.001, gt=0, description="eta_g, of f (and G)")

    @model_validator(mode="after")
    def _operator_fits(self) -> BackboneConfig:
        if self.projection and self.operator_rows > self.width:
            raise PydanticCustomError(
                "operator_rows",
                "operator_rows must not exceed width, so that T can have orthonormal rows; "
                "got operator_rows {operator_rows} and width {width}",
                {"operator_rows": self.operator_rows, "width": self.width},
            )
        return self


class BackboneAlgorithm(Algorithm):
    """Model and loss; subclasses decide how clients train and what is exchanged."""

    Config: ClassVar[type[AlgorithmConfig]] = BackboneConfig

    def initial_models(self, federation: Federation, generator: torch.Generator) -> list[ClientState]:
        """One start per task. ``f`` and ``T`` are the same for all; so are a task's ``phi`` and ``psi``."""
        c = self.config
        common = nn.init_mlp("f", c.width, c.layers, generator)
        if c.projection:
            common["T"] = nn.orthonormal_rows(c.operator_rows, c.width, generator)
        return [{**common, **self._task_parts(task, generator)} for task in federation.tasks]

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """``psi(T f(phi(x)))``: logits ``[B, C]``."""
        return nn.linear(params, "psi", self.embed(params, inputs))

    def embed(self, params: ClientState, inputs: Inputs) -> Tensor:
        """``T f(phi(x))``: ``[B, operator_rows]``; without projection ``f(phi(x))``, ``[B, width]``."""
        return self.encode(params, self.common_input(params, inputs))

    def common_input(self, params: ClientState, inputs: Inputs) -> Tensor:
        """``phi(x)``: ``[B, width]``."""
        return F.relu(nn.modality_input(params, "phi", inputs.values, inputs.present))

    def encode(self, params: ClientState, h: Tensor) -> Tensor:
        """``T f(h)``; without projection ``f(h)``."""
        h = nn.mlp(params, "f", self.config.layers, h)
        return F.linear(h, params["T"]) if self.config.projection else h

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy."""
        del context
        return nn.cross_entropy(self.predict(params, batch.inputs), batch.labels)

    def sgd(self, learning_rate: float) -> Sgd:
        """The optimiser of a part."""
        return Sgd(learning_rate, self.config.momentum, self.config.weight_decay)

    def _task_parts(self, task: Task, generator: torch.Generator) -> ClientState:
        c = self.config
        features = {name: math.prod(values.shape[1:]) for name, values in task.inputs.items()}
        return {
            **nn.init_modality_input("phi", features, c.width, generator),
            **nn.init_linear(
                "psi", c.operator_rows if c.projection else c.width, task.num_classes, generator
            ),
        }


def split_learner(
    federation: Federation, models: Sequence[ClientState]
) -> tuple[ClientState, ParameterTable]:
    """The start of ``f``, one for all, and every client's own copy of the rest of its task's start."""
    learner = {n: t for n, t in models[0].items() if part_of(n) == "f"}
    rest = [{n: t for n, t in model.items() if part_of(n) != "f"} for model in models]
    return learner, ParameterTable.of_kinds(rest, federation.clients.task_numbers)
