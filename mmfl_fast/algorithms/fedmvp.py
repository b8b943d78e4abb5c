"""FedMVP: foundation models for multimodal federated learning with incomplete modality (ECML-PKDD 2024).

Frozen foundation models give features of every modality and fill in the absent ones; both happen before
training, in the data. A client trains a joint encoder J and one common encoder c that all paths share:

    z_J = mean over tokens of c(J(x)),  z_m = c(W_m pool(x_m)),  c(h) = W h / ||W h||
    o(z) = W_2 relu(W_1 z) + z,  logits = head(o(z_J))
    L = CE(logits, y) + 0.01 MCM + 0.5 RAM

MCM contrasts ``[Z_J; Z_m]`` with itself at temperature 0.1, row k of Z_J and of Z_m being the positive pair.
RAM pulls Z_J towards Z_m while modality m alone classifies the batch better. The server runs a set of
generated items through every client's model and weights the models by how central their representations are:

    CKA_ij of linear CKA,  s_i = sum_j CKA_ij,  theta = sum_i s_i theta_i / sum_k s_k

Departures, by papers.md 3.8 and 3.9: the released aggregation cannot run and is done as described; RAM is the
mean distance per row (``ram_distance: batch`` is the code's) and does not move the teachers; MCM normalises
z_J only on request. The server's items are generated from class-balanced prompts where the federation comes
from raw image-text pairs and generators were named (:func:`mmfl_fast.data.with_server_items`); elsewhere
class-balanced complete training rows, drawn once, stand in for them, or on request draws around the means of
the classes. Everything works for any number of modalities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.algorithms.client_pairs import among_all, in_order, no_clients, no_pairs
from mmfl_fast.algorithms.frozen_features import tokens
from mmfl_fast.algorithms.joint_backbone import JointAlgorithm, JointConfig, common
from mmfl_fast.algorithms.server_items import server_items
from mmfl_fast.data import Federation, Task
from mmfl_fast.federation import Batch, ClientState, Context, Inputs, ParameterTable, State, Uploads


class FedMVPConfig(JointConfig):
    """Options of FedMVP; the defaults are those of the released code."""

    mcm: float = Field(0.01, ge=0, description="weight of the contrastive matching")
    ram: float = Field(0.5, ge=0, description="weight of the aligned margin")
    temperature: float = Field(0.1, gt=0, description="of the contrastive matching")
    renorm_joint: bool = Field(False, description="bring z_J to length 1 in the contrastive matching")
    ram_distance: Literal["row", "batch"] = Field(
        "row", description="mean distance of a row, or Frobenius distance of the batch over its size"
    )
    incomplete: Literal["keep", "drop"] = Field(
        "keep", description="training rows that lack a modality: with inputs of zero, or left out"
    )
    server: Literal["cka", "cka-offdiag", "cka-size", "size"] = Field(
        "cka", description="weights of the clients: CKA, without the client itself, times its data; FedAvg"
    )
    items_from: Literal["auto", "prompts", "moments", "rows"] = Field(
        "auto",
        description="the server's set: generated from prompts before training, drawn around the means of the "
        "classes, or complete training rows; auto: generated where that was done, else rows",
    )
    items: int = Field(256, ge=1, description="size of the server's set at most, spread over the classes")


@dataclass(frozen=True)
class FedMVPState(State):
    """What the server keeps; K is the number of clients of the federation.

    Attributes:
        models: task number -> the model of the task's clients.
        items: task number -> the server's set, modality -> ``[items, ...]``.
        count: int64 scalar, clients of the federation.
        members: int64 ``[n]``, those of the last round, ascending.
        cka: float64 ``[n, n]``, of these; NaN across tasks.
    """

    models: ParameterTable
    items: ParameterTable
    count: Tensor
    members: Tensor
    cka: Tensor


class FedMVP(JointAlgorithm):
    """Joint encoder over frozen features, taught by each modality, averaged by similarity."""

    Config = FedMVPConfig

    def setup(self, federation: Federation, generator: torch.Generator) -> FedMVPState:
        """One start and one set of items per task."""
        models = self.initial_models(federation, generator)
        c = self.config
        items = [server_items(task, c.items_from, c.items, generator) for task in federation.tasks]
        return FedMVPState(
            shared={},
            personal=ParameterTable({}),
            models=ParameterTable(dict(enumerate(models))),
            items=ParameterTable(dict(enumerate(items))),
            count=torch.tensor(len(federation.clients)),
            members=no_clients(),
            cka=no_pairs(),
        )

    def initial_models(self, federation: Federation, generator: torch.Generator) -> list[ClientState]:
        """The joint model's start, with teachers of all modalities drawn behind it."""
        models = super().initial_models(federation, generator)
        return [
            {**model, **self._teachers(task, generator)}
            for task, model in zip(federation.tasks, models, strict=True)
        ]

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Logits ``[B, C]``; of a row with one modality those of that modality alone."""
        logits = self.classify(params, self.joint(params, inputs.values))
        if len(inputs.values) == 1:
            return logits
        alone = inputs.present.sum(dim=1) == 1
        for m, single in enumerate(self.singles(params, inputs)):
            rows = (alone & inputs.present[:, m]).unsqueeze(1)
            logits = torch.where(rows, nn.linear(params, "head.out", single), logits)
        return logits

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """``CE + mcm MCM + ram RAM``."""
        del context
        c = self.config
        labels = self.counted_labels(batch)
        joint, singles = self.joint(params, batch.inputs.values), self.singles(params, batch.inputs)
        supervised = nn.cross_entropy(self.classify(params, joint), labels)
        counted = labels != -100
        matched = F.normalize(joint, dim=1) if c.renorm_joint else joint
        matching = supervised.new_zeros(())
        margin = supervised.new_zeros(())
        for m, single in enumerate(singles):
            there = counted & batch.inputs.present[:, m]
            matching = matching + contrastive_matching(matched, single, there, c.temperature)
            own = torch.where(there, labels, -100)
            alone = nn.cross_entropy(nn.linear(params, "head.out", single), own)
            better = (alone < supervised).to(joint.dtype).detach() * there.any()
            margin = margin + better * distance(joint, single.detach(), there, c.ram_distance)
        total: Tensor = supervised + c.mcm * matching + c.ram * margin
        return total

    def aggregate(self, state: FedMVPState, uploads: Uploads, weights: Tensor) -> FedMVPState:
        """Average each task's models by centrality."""
        tasks = [client.task_index for client in uploads.clients]
        models, cka = {}, among_all(no_pairs(), no_clients(), len(tasks))
        for task in dict.fromkeys(tasks):
            positions = [p for p, own in enumerate(tasks) if own == task]
            members = uploads.select(positions)
            similarity = self._similarity(members, state.items[task])
            importance = centrality(similarity, weights[positions], self.config.server)
            models[task] = ops.weighted_mean(members.rows(), importance)
            cka[torch.tensor(positions).unsqueeze(1), positions] = similarity.cpu()
        numbers = torch.tensor([c.index for c in uploads.clients])
        return replace(
            state,
            models=state.models.replace(models),
            members=numbers.sort().values,
            cka=in_order(cka, numbers),
        )

    def metrics(self, state: FedMVPState) -> dict[str, Any]:
        """Mean and smallest CKA between clients of the last round."""
        pairs = state.cka[~torch.eye(len(state.cka), dtype=torch.bool, device=state.cka.device)]
        pairs = pairs[~pairs.isnan()]
        if not len(pairs):
            return {}
        return {"cka_mean": float(pairs.mean()), "cka_smallest": float(pairs.min())}

    def similarity(self, state: FedMVPState) -> Tensor | None:
        """CKA between the clients' models."""
        return among_all(state.cka, state.members, int(state.count))

    def singles(self, params: ClientState, inputs: Inputs) -> list[Tensor]:
        """``z_m`` of every modality, each ``[B, width * modalities]`` and of length 1."""
        return [
            common(params, nn.linear(params, f"teacher.{m}", tokens(x).mean(dim=-2)))
            for m, x in inputs.values.items()
        ]

    def _similarity(self, uploads: Uploads, items: ClientState) -> Tensor:
        """CKA of the clients' ``z_J`` on the server's items, float64 ``[K, K]``."""
        with torch.no_grad():
            features = torch.stack([self.joint(row, items) for row in uploads.rows()])
            return ops.linear_cka(F.normalize(features, dim=-1)).double()

    def _teachers(self, task: Task, generator: torch.Generator) -> ClientState:
        joint = self.config.width * len(task.inputs)
        params: ClientState = {}
        for name, x in task.inputs.items():
            params |= nn.init_linear(f"teacher.{name}", tokens(x).shape[-1], joint, generator)
        return params


def contrastive_matching(joint: Tensor, single: Tensor, there: Tensor, temperature: float) -> Tensor:
    """Mean over the 2B rows of ``[Z_J; Z_m]`` of ``-log(exp(<a, a'>/t) / sum_{b != a} exp(<a, b>/t))``.

    Args:
        joint: Z_J ``[B, D]``.
        single: Z_m ``[B, D]``; ``a'`` is the row of the other that belongs to a.
        there: bool ``[B]``; other rows neither count nor serve as negatives.
        temperature: t.

    Returns:
        0-dim; 0 for fewer than two rows, because only the positive is left to choose.
    """
    rows = torch.cat([joint, single])
    valid = torch.cat([there, there])
    eye = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    candidates = valid & ~eye
    logits = torch.where(candidates, rows @ rows.T / temperature, -torch.inf)
    # A row without candidates keeps a finite one, so that no gradient is NaN.
    logits = torch.where(eye & ~candidates.any(dim=1, keepdim=True), 0.0, logits)
    positive = (rows * torch.cat([single, joint])).sum(dim=1) / temperature
    losses = torch.where(valid, logits.logsumexp(dim=1) - positive, 0.0)
    return losses.sum() / valid.sum().clamp(min=1)


def distance(joint: Tensor, single: Tensor, there: Tensor, form: str) -> Tensor:
    """Distance of Z_J from Z_m, both ``[B, D]``, over the rows that are ``there``, bool ``[B]``.

    ``row``: mean of ``||z_J - z_m||``; ``batch``: ``||Z_J - Z_m||_F / B``, which falls with the root of B.
    """
    difference = torch.where(there.unsqueeze(1), joint - single, 0.0)
    total = difference.norm() if form == "batch" else difference.norm(dim=1).sum()
    mean: Tensor = total / there.sum().clamp(min=1)
    return mean


def centrality(cka: Tensor, sizes: Tensor, rule: str) -> Tensor:
    """Weights of the clients, float64 ``[K]``, summing to 1.

    Args:
        cka: ``[K, K]`` with a diagonal of 1.
        sizes: ``[K]``, shares of the training rows.
        rule: ``cka``: ``s_i = sum_j CKA_ij``; ``cka-offdiag``: without ``j = i``, by data if all are 0;
            ``cka-size``: ``s_i`` times the share of data; ``size``: the share of data.
    """
    if rule == "size":
        importance = sizes
    elif rule == "cka-offdiag":
        others = cka.sum(dim=1) - cka.diagonal()
        importance = torch.where((others > 0).any(), others, sizes)
    else:
        importance = cka.sum(dim=1) * (sizes if rule == "cka-size" else 1.0)
    weights: Tensor = importance / importance.sum()
    return weights
