"""CreamFL-style: after Contrastive Representation Ensemble and Aggregation (ICLR 2023), on the fusion model.

Some rows with all modalities are public: every client and the server see their inputs, nobody their labels.
A client is contrasted on them with the representations of the server; it sends its own, which the server
weights by how well they tell the rows apart, and to which it draws its model. With ``v_m(n)`` the unit
representation of modality m of public row n, ``t_m(n)`` the server's and ``Omega`` what the client holds:

    client: L = CE + gamma mean_{m in Omega, n} (inter + intra)
            inter = mean_{m' != m} -log( exp(v_m(n).t_m'(n)/tau) / sum_n' exp(v_m(n).t_m'(n')/tau) )
            intra = -log( exp(v_m(n).t_m(n)/tau) / (exp(v_m(n).t_m(n)/tau) + exp(v_m(n).previous_m(n)/tau)) )
    server: s_i(n) = mean_{m' != m} log softmax_n'( v_i,m(n).t_m'(n') )[n],  a = softmax_i(s)
            u_m(n) = sum_i a_i(n) v_i,m(n),  steps on kd mean_{m, n} ||v_m(n) - u_m(n)||^2

``previous`` is the client's own model of when it last took part; without one there is no intra term.

Reduced: in the paper clients have other models than the server, and only representations are exchanged; here
the models are averaged as in FedAvg, before the server's steps. The paper's public set is a data set of its
own (MS-COCO). Here it is a share of the complete training rows, which stay with their owners: everyone trains
on the same local rows with as many steps as in the other methods, and all clients see some rows of others
besides. Methods compared with it have no such rows, nor the server's steps, which come on top of what
``optimiser_steps`` counts. A round uses ``public_batch`` of the rows in turn, and ``bytes_down`` counts them
(papers.md 6.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn
from mmfl_fast.algorithms.fusion_backbone import FusionConfig
from mmfl_fast.algorithms.fusion_fedavg import FusionFedAvg
from mmfl_fast.algorithms.moon import model_contrast
from mmfl_fast.algorithms.own_copy import own_copy
from mmfl_fast.algorithms.previous_model import PERSONAL, no_previous_model, with_previous_model
from mmfl_fast.algorithms.task_models import TaskModels
from mmfl_fast.data import Client, Federation, Task
from mmfl_fast.data.federation import Kind
from mmfl_fast.federation import (
    Batch,
    ClientState,
    Context,
    Inputs,
    ParameterTable,
    Phase,
    Uploads,
    part_of,
)
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.client_workers import one_torch_thread

_REPRESENTED = ("encoder", "projection")


class CreamFLConfig(FusionConfig):
    """Options of the CreamFL-style baseline."""

    contrast: float = Field(0.5, ge=0, description="gamma, weight of both contrasts; 0 leaves them out")
    temperature: float = Field(0.5, gt=0, description="tau of both contrasts")
    distillation: float = Field(0.3, ge=0, description="kd, weight of the server's loss; 0 leaves it out")
    server_steps: int = Field(5, ge=1, description="steps of the server, at learning_rate")
    public_share: float = Field(0.1, gt=0, le=1, description="of the complete training rows that is public")
    public_batch: int = Field(32, ge=1, description="public rows that a round uses")
    projection_width: int = Field(256, ge=1, description="dimension of the representations")


@dataclass(frozen=True)
class CreamFLState(TaskModels):
    """What the server keeps.

    Attributes:
        public: task number -> ``rows`` int64 ``[N]``, the public ones as row numbers of the task, and
            ``turn`` int64, 0-dim, how often they were used.
        common: task number -> ``common.<modality>`` ``[B, projection_width]``, t of the rows in turn.
    """

    public: ParameterTable
    common: ParameterTable


class CreamFL(FusionFedAvg):
    """FedAvg with contrasts on public rows, and representations that the server ensembles and learns."""

    Config = CreamFLConfig
    personal = (*PERSONAL, "held")
    trained = (*FusionFedAvg.trained, "projection")

    def initial_models(self, federation: Federation, generator: torch.Generator) -> list[ClientState]:
        """The common start, with a projection of all modalities' features drawn behind it."""
        width, projected = self.config.width, self.config.projection_width
        return [
            {**model, **nn.init_two_layer("projection", width, projected, projected, generator)}
            for model in super().initial_models(federation, generator)
        ]

    def setup(self, federation: Federation, generator: torch.Generator) -> CreamFLState:
        """FedAvg's start; draw the public rows.

        Raises:
            ValueError: a task has no training row with all of its modalities.
        """
        start = super().setup(federation, generator)
        none = [no_previous_model(start.models[i], _REPRESENTED) for i in range(len(federation.tasks))]
        kinds, of_client = federation.clients.kinds
        public = {i: self._published(task, generator) for i, task in enumerate(federation.tasks)}
        common = {
            i: self._common(start.models[i], self._public_values(task, public[i]))
            for i, task in enumerate(federation.tasks)
        }
        return CreamFLState(
            shared={},
            personal=ParameterTable.of_kinds(
                [{**none[kind.task_index], **_held(kind, federation)} for kind in kinds], of_client
            ),
            models=start.models,
            task=start.task,
            public=ParameterTable(public),
            common=ParameterTable(common),
        )

    def broadcast(self, state: CreamFLState, client: Client) -> ClientState:
        """Send the model, the public rows and their representations; the rest is the client's own."""
        values = self._public_values(client.task, state.public[client.task_index])
        return {
            **super().broadcast(state, client),
            **state.common[client.task_index],
            **{f"public.{m}": x for m, x in values.items()},
            **state.personal[client.index],
        }

    def client_phases(self) -> list[Phase]:
        """FedAvg's; behind the last pass its result becomes the previous model."""
        *passes, last = super().client_phases()
        return [*passes, replace(last, after=lambda params: with_previous_model(params, _REPRESENTED))]

    def represent(self, params: ClientState, values: Mapping[str, Tensor], held: Tensor) -> dict[str, Tensor]:
        """v: modality -> unit rows ``[B, projection_width]``, of modalities that are not held as well."""
        rows = len(next(iter(values.values())))
        features = self.encode(params, Inputs(dict(values), (held > 0).expand(rows, -1)))
        return {
            m: nn.unit_rows(nn.two_layer(params, "projection", steps.mean(dim=1)))
            for m, steps in features.items()
        }

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy on the client's rows and both contrasts on the public ones."""
        supervised = super().loss(params, batch, context)
        gamma: float = self.config.contrast
        if gamma == 0:
            return supervised
        held, temperature = params["held"], self.config.temperature
        values = {m: params[f"public.{m}"] for m in batch.inputs.values}
        common = {m: params[f"common.{m}"] for m in values}
        own = self.represent(params, values, held)
        previous = self.represent(own_copy(params), values, held)
        everyone = torch.ones(len(next(iter(own.values()))), dtype=torch.bool, device=held.device)
        contrasts = [
            matching_loss(own[m], [t for other, t in common.items() if other != m], temperature)
            + params["previous.exists"]
            * model_contrast(own[m], common[m], previous[m], everyone, temperature)
            for m in values
        ]
        return supervised + gamma * (held * torch.stack(contrasts)).sum() / held.sum().clamp(min=1)

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send the model, and representations of the public rows in the modalities that the client holds."""
        values = {m: params[f"public.{m}"] for m in client.task.modalities}
        with torch.no_grad():
            own = self.represent(params, values, params["held"])
        model = {n: t for n, t in params.items() if part_of(n) in self.trained}
        return {**model, **{f"code.{m}": own[m] for m in client.modalities}}

    def aggregate(self, state: CreamFLState, uploads: Uploads, weights: Tensor) -> CreamFLState:
        """Average the models, draw them to the ensembles, and go on to the next public rows."""
        sent = [{n: t for n, t in row.items() if part_of(n) in self.trained} for row in uploads.rows()]
        state = super().aggregate(state, Uploads(uploads.clients, sent), weights)
        models, public, common = {}, {}, {}
        for number, task in {c.task_index: c.task for c in uploads.clients}.items():
            members = [k for k, c in enumerate(uploads.clients) if c.task_index == number]
            targets = ensemble(uploads.select(members), state.common[number])
            values = self._public_values(task, state.public[number])
            public[number] = {**state.public[number], "turn": state.public[number]["turn"] + 1}
            # One thread, as for clients: the bits of a run do not depend on how many there are.
            with one_torch_thread():
                models[number] = self._distilled(state.models[number], values, targets)
                common[number] = self._common(models[number], self._public_values(task, public[number]))
        return replace(
            state,
            models=state.models.replace(models),
            public=state.public.replace(public),
            common=state.common.replace(common),
        )

    def metrics(self, state: CreamFLState) -> dict[str, Any]:
        """How many rows are public."""
        return {"public_rows": sum(len(state.public[i]["rows"]) for i in range(len(state.public)))}

    def _published(self, task: Task, generator: torch.Generator) -> ClientState:
        complete = (task.present.all(dim=1).cpu() & task.is_train.cpu()).nonzero().flatten()
        if not len(complete):
            raise ValueError(
                f"creamfl needs public rows, but task {task.name!r} has no training row with all of its "
                f"modalities {', '.join(task.modalities)}"
            )
        count = max(1, round(self.config.public_share * len(complete)))
        drawn = torch.randperm(len(complete), generator=generator)[:count]
        return {"rows": complete[drawn], "turn": torch.zeros((), dtype=torch.int64)}

    def _public_values(self, task: Task, public: ClientState) -> dict[str, Tensor]:
        rows = public["rows"]
        batch = min(self.config.public_batch, len(rows))
        turn = (public["turn"] * batch + torch.arange(batch, device=rows.device)) % len(rows)
        return gather(task, rows[turn]).inputs.values

    def _common(self, model: ClientState, values: Mapping[str, Tensor]) -> ClientState:
        # At the start the model is on the CPU, wherever the data are.
        device = model["projection.0.weight"].device
        with torch.no_grad():
            own = self.represent(
                model, {m: x.to(device) for m, x in values.items()}, torch.ones(len(values), device=device)
            )
        return {f"common.{m}": v for m, v in own.items()}

    def _distilled(
        self, model: ClientState, values: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> ClientState:
        kd, rate = self.config.distillation, self.config.learning_rate
        held = torch.tensor([float(m in targets) for m in values], device=model["projection.0.weight"].device)
        for _ in range(self.config.server_steps if kd and targets else 0):
            leaves = {n: t.detach().requires_grad_() for n, t in model.items() if part_of(n) in _REPRESENTED}
            own = self.represent({**model, **leaves}, values, held)
            distances = [(own[m] - u).square().sum(dim=1).mean() for m, u in targets.items()]
            loss = kd * torch.stack(distances).mean()
            gradients = torch.autograd.grad(
                loss, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            model = {
                **model,
                **{n: t.detach() - rate * g for (n, t), g in zip(leaves.items(), gradients, strict=True)},
            }
        return model


def _held(kind: Kind, federation: Federation) -> ClientState:
    """Which modalities a client holds, as factors that a stack of clients can have."""
    known = federation.tasks[kind.task_index].modalities
    return {"held": torch.tensor([float(m in kind.modalities) for m in known])}


def matching_loss(own: Tensor, others: Sequence[Tensor], temperature: float) -> Tensor:
    """Inter: find each row among all by its representation in another modality, mean over those; 0 for none.

    Args:
        own: ``[B, D]``.
        others: of the other modalities, ``[B, D]`` each.
        temperature: tau.
    """
    rows = torch.arange(len(own), device=own.device)
    losses = [F.cross_entropy(own @ other.T / temperature, rows) for other in others]
    return torch.stack(losses).mean() if losses else own.new_zeros(())


def ensemble(uploads: Uploads, common: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """u: modality -> ``[B, D]``, the representations of its owners, weighted row by row.

    Args:
        uploads: of clients of one task; an owner of modality m sent ``code.<m>`` ``[B, D]``.
        common: t, ``common.<modality>`` ``[B, D]``.
    """
    means: dict[str, Tensor] = {}
    for name, target in common.items():
        modality = name.removeprefix("common.")
        owners = [k for k, c in enumerate(uploads.clients) if modality in c.modalities]
        if not owners:
            continue
        codes = uploads.select(owners)[f"code.{modality}"].double()
        others = [t.double() for other, t in common.items() if other != name]
        scores = codes.new_zeros(codes.shape[:2])
        for other in others:
            scores += (codes @ other.T).log_softmax(dim=2).diagonal(dim1=1, dim2=2) / len(others)
        shares = scores.softmax(dim=0)
        means[modality] = (shares.unsqueeze(2) * codes).sum(dim=0).to(target)
    return means
