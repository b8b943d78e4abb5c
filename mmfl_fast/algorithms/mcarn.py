"""MCARN-style: after MCARN (TPAMI 2024), with the losses of its predecessor FDARN (AAAI 2022).

Two encoders read the same input, an altruistic one that is federated and an egocentric one that never leaves
the client; the sum of their heads classifies. A discriminator ``D`` is to tell a row's modality from the
private code and, through a reversed gradient, not to tell it from the shared one:

    s = N(T f(phi(x))),  p = N(T' f'(phi(x))),  logits = psi(s) + psi'(p)
    L = CE + 0.6 L_diff + 0.4 (A(D(GRL(s))) + A(D(p))) + 0.4 L_spread + 0.4 L_calibration

    N              scales a row to a root mean square of 1
    L_diff         mean squared entry of S^T P, rows of unit length: the codes are orthogonal
    A              cross-entropy with additive angular margin: 72 cos(theta_k + m_k) for the row's modality k,
                   72 cos(theta_j) for the others, theta_j the angle to the centre of modality j
    GRL            the gradient times -(2 / (1 + exp(-10 progress)) - 1)
    L_spread       mean squared cosine of two centres: the modalities stay apart
    L_calibration  mean squared difference between the cosines of two classes' weights in psi' and in psi as
                   broadcast: the private heads relate the classes as all clients do

Server: data-weighted average of ``f``, ``T``, ``D`` and the centres over all clients and of ``psi`` over the
clients of a task, since a class number means nothing elsewhere; ``phi``, ``f'``, ``T'`` and ``psi'`` stay.

FDARN's losses are those of its code. There the discriminator tells client numbers, here modalities as the
paper says; there the spread reads a detached copy of the centres and no optimiser has them, here they learn.
Its encoders end in batch normalisation, without which a factor of 72 drives the codes to infinity; ``N``
bounds them without statistics of a batch, which differ from client to client. Progress counts rounds, so the
reversal is off in the first one, as in the first 200 steps of the code. A row of several modalities counts
for each of them in equal parts.

No author's code of MCARN was found, hence "-style": what its abstract adds, a margin adjusted to imbalanced
modalities and a calibration of the private heads, is our reading: ``m_k = 0.5 (n_k / n_max)^(1/4)`` with
``n_k`` the training rows of a modality, and ``L_calibration``. ``margins: equal`` with ``calibration: 0`` is
FDARN (papers.md 5.6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.algorithms.fedavg import group_means
from mmfl_fast.algorithms.own_copy import OWN, own_copy
from mmfl_fast.algorithms.plain_training import PlainTraining, PlainTrainingConfig
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import Batch, ClientState, Context, Inputs, ParameterTable, State, Uploads, part_of

_DISCRIMINATOR_WIDTH = 128
# Bounds the derivative of sin(theta) by cos(theta), which is infinite at angle 0.
_LEAST_SQUARED_SINE = 1e-6


class MCARNConfig(PlainTrainingConfig):
    """Options of the MCARN-style baseline; the defaults are of FDARN's code, ours where it has none."""

    orthogonality: float = Field(0.6, ge=0, description="weight of L_diff")
    discrimination: float = Field(0.4, ge=0, description="weight of both modality losses A")
    spread: float = Field(0.4, ge=0, description="weight of L_spread")
    calibration: float = Field(0.4, ge=0, description="weight of L_calibration; 0 in FDARN")
    margins: Literal["modality", "equal"] = Field(
        "modality", description="larger for modalities of more rows; equal: one for all, as in FDARN"
    )
    margin: float = Field(0.5, ge=0, lt=math.pi / 2, description="largest angular margin, in radians")
    scale: float = Field(72.0, gt=0, description="factor of the cosines in A")
    reversal_rounds: int = Field(300, ge=1, description="rounds until progress is 1; 0.46 of it at a tenth")


@dataclass(frozen=True)
class MCARNState(State):
    """What the server keeps; ``shared`` is what all tasks have in common.

    Attributes:
        heads: task number -> the shared head of the task's clients.
        task: int64 ``[K]``, the task of each client.
    """

    heads: ParameterTable
    task: Tensor


class MCARN(PlainTraining):
    """A federated and a private encoder, told apart by modality."""

    Config = MCARNConfig
    personal = ("phi", OWN)
    beside = (OWN, "D", "centre")

    def setup(self, federation: Federation, generator: torch.Generator) -> MCARNState:
        """The private model is a second draw: equal encoders would get equal gradients."""
        models = self.initial_models(federation, generator)
        twins = self.initial_models(federation, generator)
        code = models[0]["psi.weight"].shape[1]
        discriminator = nn.init_linear("D", code, _DISCRIMINATOR_WIDTH, generator, relu=True)
        margins = self._margins(rows_per_modality(federation))
        # Of length about 1: a cosine has the smaller a gradient, the longer its vectors are.
        centre_scale = _DISCRIMINATOR_WIDTH**-0.5
        centres = {
            f"centre.{m}": centre_scale * torch.randn(_DISCRIMINATOR_WIDTH, generator=generator)
            for m in margins
        }
        own = [
            {n: t for n, t in model.items() if part_of(n) == "phi"}
            | {f"{OWN}.{n}": t for n, t in twin.items() if part_of(n) != "phi"}
            for model, twin in zip(models, twins, strict=True)
        ]
        return MCARNState(
            shared={
                **{n: t for n, t in models[0].items() if part_of(n) in ("f", "T")},
                **discriminator,
                **centres,
                **{f"margin.{m}": margin for m, margin in margins.items()},
            },
            personal=ParameterTable.of_kinds(own, federation.clients.task_numbers),
            heads=ParameterTable(
                {i: {n: t for n, t in m.items() if part_of(n) == "psi"} for i, m in enumerate(models)}
            ),
            task=torch.from_numpy(federation.clients.task_numbers),
        )

    def broadcast(self, state: MCARNState, client: Client) -> ClientState:
        """Send what all share and the task's head; the rest is the client's own."""
        return {**super().broadcast(state, client), **state.heads[client.task_index]}

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """``psi(s) + psi'(p)``: logits ``[B, C]``."""
        return self._logits(params, *self.codes(params, inputs))

    def codes(self, params: ClientState, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """``s`` and ``p``: ``[B, operator_rows]`` each, rows of root mean square 1."""
        h = self.common_input(params, inputs)
        shared, private = (self.encode(encoder, h) for encoder in (params, own_copy(params)))
        scale = math.sqrt(shared.shape[1])
        return scale * nn.unit_rows(shared), scale * nn.unit_rows(private)

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """The six terms above."""
        c = self.config
        shared, private = self.codes(params, batch.inputs)
        names = [n.partition(".")[2] for n in params if part_of(n) == "centre"]
        centres = torch.stack([params[f"centre.{m}"] for m in names])
        margins = torch.stack([params[f"margin.{m}"] for m in names])
        held = modalities_held(batch.inputs, names)

        told = torch.cat([nn.scale_gradient(shared, -self.reversal(context.round)), private])
        features = F.relu(nn.linear(params, "D", told))
        to_centres = (nn.unit_rows(features) @ nn.unit_rows(centres).T).chunk(2)
        told_apart = [angular_margin_loss(cosines, margins, held, c.scale) for cosines in to_centres]
        own, common = own_copy(params)["psi.weight"], context.start["psi.weight"]
        total: Tensor = (
            nn.cross_entropy(self._logits(params, shared, private), batch.labels)
            + c.orthogonality * squared_overlap(shared, private, batch.labels != -100)
            + c.discrimination * (told_apart[0] + told_apart[1])
            + c.spread * mean_square_off_diagonal(cosine_matrix(centres))
            + c.calibration * mean_square_off_diagonal(cosine_matrix(own) - cosine_matrix(common))
        )
        return total

    def reversal(self, round_index: int) -> float:
        """Weight of the reversed gradient, from 0 in the first round towards 1."""
        progress = min(1.0, round_index / self.config.reversal_rounds)
        return 2 / (1 + math.exp(-10 * progress)) - 1

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send all that is shared but the margins, which the server set."""
        return {n: t for n, t in super().upload(params, client).items() if part_of(n) != "margin"}

    def aggregate(self, state: MCARNState, uploads: Uploads, weights: Tensor) -> MCARNState:
        """Average over everyone, the heads inside a task; a task that was not drawn keeps its head."""
        common = [{n: t for n, t in row.items() if part_of(n) != "psi"} for row in uploads.rows()]
        return replace(
            state,
            shared={**state.shared, **ops.weighted_mean(common, weights)},
            heads=state.heads.replace(group_means(state.task, uploads, weights, "psi")),
        )

    def _logits(self, params: ClientState, shared: Tensor, private: Tensor) -> Tensor:
        return nn.linear(params, "psi", shared) + nn.linear(own_copy(params), "psi", private)

    def _margins(self, rows: Mapping[str, int]) -> dict[str, Tensor]:
        most = max(1, *rows.values())
        equal = self.config.margins == "equal"
        return {
            m: torch.tensor(self.config.margin * (1.0 if equal else (count / most) ** 0.25))
            for m, count in rows.items()
        }


def rows_per_modality(federation: Federation) -> dict[str, int]:
    """Training rows that have each modality, over all tasks."""
    counts: dict[str, int] = {}
    for task in federation.tasks:
        for column, name in enumerate(task.inputs):
            there = int((task.present[:, column].cpu() & task.is_train.cpu()).sum())
            counts[name] = counts.get(name, 0) + there
    return counts


def modalities_held(inputs: Inputs, names: list[str]) -> Tensor:
    """Which of the federation's modalities each row has: bool ``[B, len(names)]``."""
    columns = dict(zip(inputs.values, inputs.present.unbind(dim=1), strict=True))
    absent = torch.zeros_like(inputs.present[:, 0])
    return torch.stack([columns.get(name, absent) for name in names], dim=1)


def squared_overlap(shared: Tensor, private: Tensor, counted: Tensor) -> Tensor:
    """Mean squared entry of ``S^T P``, rows scaled to unit length.

    ``||S^T P||_F^2`` is the inner product of the two B x B matrices of cosines.

    Args:
        shared: S ``[B, d]``.
        private: P ``[B, d]``.
        counted: bool ``[B]``; the other rows are left out.
    """
    product = cosine_matrix(shared) * cosine_matrix(private)
    both = counted[:, None] & counted
    return torch.where(both, product, 0.0).sum() / shared.shape[1] ** 2


def cosine_matrix(rows: Tensor) -> Tensor:
    """Cosines of all pairs of the few rows of a batch, ``[N, d]`` to ``[N, N]``."""
    units = nn.unit_rows(rows)
    return units @ units.T


def angular_margin_loss(cosines: Tensor, margins: Tensor, held: Tensor, scale: float) -> Tensor:
    """Cross-entropy of ``scale cos(theta_k + m_k)`` against ``scale cos(theta_j)`` (ArcFace, CVPR 2019).

    Beyond ``theta_k + m_k = pi`` the margin is taken off the cosine instead, ``cos(theta_k) - m_k sin(m_k)``,
    so that the loss goes on growing with the angle.

    Args:
        cosines: ``[B, M]``, of each row with each centre.
        margins: ``[M]``, radians.
        held: bool ``[B, M]``, targets of a row, which share it equally; a row without any does not count.
        scale: factor of the cosines.

    Returns:
        Mean over the rows that count; 0 if there is none.
    """
    sines = (1 - cosines.square()).clamp(min=_LEAST_SQUARED_SINE).sqrt()
    turned = cosines * margins.cos() - sines * margins.sin()
    turned = torch.where(cosines > -margins.cos(), turned, cosines - margins * margins.sin())
    target = torch.eye(len(margins), dtype=torch.bool, device=cosines.device)
    logits = scale * torch.where(target, turned.unsqueeze(1), cosines.unsqueeze(1))
    losses = logits.logsumexp(dim=2) - scale * turned
    shares = held / held.sum(dim=1, keepdim=True).clamp(min=1)
    return (losses * shares).sum() / held.any(dim=1).sum().clamp(min=1)


def mean_square_off_diagonal(matrix: Tensor) -> Tensor:
    """Mean of the squares off the diagonal of ``[N, N]``; 0 for N = 1."""
    count = len(matrix)
    square = matrix.square()
    return (square.sum() - square.diagonal().sum()) / max(1, count * (count - 1))
