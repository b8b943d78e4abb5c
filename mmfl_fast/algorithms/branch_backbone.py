"""The network of 3FM and of what is compared with it: a branch per modality, a head on all (papers.md 2.4).

``branch.<modality>`` turns a picture into features, other inputs are features as they are; ``head``
classifies the features of all modalities side by side. Those of an absent modality are zeros of full width.
Every task has a model of its own, and the server averages it by data.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmfl_fast import nn
from mmfl_fast.algorithms.task_models import TaskAverage
from mmfl_fast.data import Federation, Task
from mmfl_fast.data.arguments import suggestion
from mmfl_fast.federation import (
    AlgorithmConfig,
    ClientState,
    Inputs,
)


class BranchConfig(AlgorithmConfig):
    """Options of the network and of meta-steps; the defaults are those of the report's best runs."""

    support: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="modalities of support sets, a list or image+sign; default: all a client has",
    )
    inner_rate: float = Field(1e-5, gt=0, description="alpha, rate of the inner steps")
    order: Literal["second", "first"] = Field(
        "second", description="first: the gradients of inner steps count as constants, FOMAML"
    )
    head_width: int = Field(128, ge=1, description="of the layer behind the branches")
    learning_rate: float = Field(1e-3, gt=0, description="beta, rate of the outer steps")
    batch_size: int = Field(2**31 - 1, ge=1, description="rows per meta-step; default: all of a client")
    local_epochs: int = Field(5, ge=1, description="passes over a client's rows per round")
    momentum: float = Field(0.0, ge=0, le=0, description="none: the outer optimiser is Adam")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, of the outer Adam")

    @field_validator("support", mode="before")
    @classmethod
    def _joined_by_plus(cls, given: Any) -> Any:
        # A list does not fit into a method's label, nor among the values of a sweep.
        return given.split("+") if isinstance(given, str) else given


class BranchAlgorithm(TaskAverage):
    """Network and averaging; subclasses decide what a meta-step is."""

    Config: ClassVar[type[AlgorithmConfig]] = BranchConfig

    def initial_models(self, federation: Federation, generator: torch.Generator) -> list[ClientState]:
        """One start per task.

        Raises:
            ValueError: ``support`` names a modality that no task has.
        """
        known = sorted({m for task in federation.tasks for m in task.modalities})
        for modality in self.config.support or ():
            if modality not in known:
                raise ValueError(
                    f"support names the unknown modality {modality!r}{suggestion(modality, known)}"
                )
        return [self.initial_model(task, generator) for task in federation.tasks]

    def initial_model(self, task: Task, generator: torch.Generator) -> ClientState:
        """Branches and head of a task."""
        params: ClientState = {}
        for name, x in task.inputs.items():
            if x.dim() > 2:
                params |= nn.init_picture_branch(f"branch.{name}", x.shape[1:], generator)
        features = sum(feature_sizes(task).values())
        head = nn.init_two_layer("head", features, self.config.head_width, task.num_classes, generator)
        return {**params, **head}

    def features(self, params: ClientState, inputs: Inputs, skipped: Set[str]) -> dict[str, Tensor]:
        """``branch_m(x_m)``, modality -> ``[B, F_m]``; those of absent modalities mean nothing.

        Args:
            params: of the client.
            inputs: of a batch.
            skipped: modalities that no row has, whose branches need not run; see :func:`absent`.
        """
        features = {}
        for m, x in inputs.values.items():
            if x.dim() == 2:
                features[m] = x
            elif m in skipped:
                features[m] = x.new_zeros(len(x), nn.picture_features(x.shape[1:]))
            else:
                features[m] = nn.picture_branch(params, f"branch.{m}", x)
        return features

    def logits(self, params: ClientState, inputs: Inputs, skipped: Set[str]) -> Tensor:
        """``head(relu(join([branch_m(x_m) or 0])))``: ``[B, C]``; arguments as for :meth:`features`."""
        return nn.two_layer(params, "head", joined(self.features(params, inputs, skipped), inputs.present))

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Logits ``[B, C]``."""
        return self.logits(params, inputs, absent(inputs))


def absent(inputs: Inputs) -> set[str]:
    """Modalities that no row has, as far as that can be told: asked outside of ``torch.func``."""
    columns = zip(inputs.values, inputs.present.unbind(dim=1), strict=True)
    return {name for name, here in columns if nn.surely_absent(here)}


def joined(features: dict[str, Tensor], present: Tensor) -> Tensor:
    """Features side by side, ``[B, sum F_m]``: zeros where ``present``, bool ``[B, M]``, is not."""
    parts = [torch.where(present[:, m : m + 1], x, 0.0) for m, x in enumerate(features.values())]
    return torch.cat(parts, dim=1)


def feature_sizes(task: Task) -> dict[str, int]:
    """Modality -> number of features of its branch."""
    shapes = {name: x.shape[1:] for name, x in task.inputs.items()}
    return {
        name: nn.picture_features(shape) if len(shape) > 1 else shape.numel()
        for name, shape in shapes.items()
    }
