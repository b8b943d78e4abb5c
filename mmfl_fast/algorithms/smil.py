"""Federated SMIL: Multimodal Learning with Severely Missing Modality (AAAI 2021), on 3FM's network.

3FM names SMIL and never runs it. SMIL trains on many incomplete rows D_m and few complete ones D_f. To the
branches and the head (theta) come two linear layers:

* phi_c rebuilds the feature of an absent modality from priors p_1 .. p_K of that modality, with weights from
  the features that are there, x: sigma = softplus(phi_c(x)), w ~ N(1, sigma), feature = sum_k w_k p_k / K.
* phi_r perturbs the head's hidden layer h^1 by what stands before it, the features h^0 of all modalities:
  (mu, sigma) = phi_r(h^0), sigma through softplus, r ~ N(mu, sigma), h^1 := h^1 o softplus(r), where o adds
  or multiplies.

A step is bilevel: theta* = theta after ``inner_steps`` on the cross-entropy of D_m, then the outer step moves
theta, phi_c and phi_r by the cross-entropy of D_f at theta* and, by ``penalty_weight``, one of

    kl        KL(N(mu, sigma) || N(0, 1)) of r over the rows of the outer step, and KL(N(1, sigma) || N(1, 1))
              of w over the modalities of D_m that are rebuilt; means over rows and dimensions
    matching  mean (h^1 with modalities rebuilt - h^1 with the true ones)^2 over D_f, the latter a constant;
              what the released code has in place of KL. Rebuilt are the modalities that ``support`` lacks, or
              each in its turn.

The federation is ours (papers.md 6.1): clients average theta, phi_c and phi_r as FedAvg does, and those with
complete rows send the class means of their features over these; the server clusters the means of each
modality by k-means, and the centres are the priors of the next round. Before the first have come an absent
feature is zero, as in 3FM; in a federation without any complete row it remains so, and ``prior_share`` stays
0. A batch without complete rows, as all are of some clients, has no D_f: its outer step is on the incomplete
ones.

Rows are incomplete in the data, or made so as in 3FM: one row in ``support_every`` keeps the modalities of
``support`` alone. The division by K differs from the printed inner product, which is K times the size of a
feature. ``weights: softplus`` and ``variance: unit`` are the released code's: weights softplus(phi_c(x)),
divided by their sum and not drawn, and r ~ N(mu, 1).

The noise of w and r is a function of the round, the draw and the row's place in its batch, the same for all
clients and seeds, which keeps a loss a pure function. A prediction is the mean over ``samples`` draws.

Steps run in native code for clients all of whose rows are complete, because the rows of D_m and D_f are then
those of every batch. For others native code would have to put all rows through both levels, which is slower
than autograd; they take that.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from mmfl_fast import nn
from mmfl_fast.algorithms.branch_backbone import (
    BranchAlgorithm,
    BranchConfig,
    absent,
    feature_sizes,
    joined,
)
from mmfl_fast.algorithms.prototype_exchange import local_prototypes
from mmfl_fast.algorithms.task_models import TaskModels
from mmfl_fast.data import Client, Federation, Task
from mmfl_fast.federation import (
    Adam,
    Batch,
    ClientState,
    Context,
    Inputs,
    ParameterTable,
    Phase,
    Uploads,
    normal_rows,
    part_of,
)

_THETA = ("branch", "head")


class SMILConfig(BranchConfig):
    """Options of federated SMIL; rates and samples are those of its released code."""

    support_every: int = Field(
        5, ge=2, description="with support: one row in so many keeps the modalities of support alone"
    )
    inner_rate: float = Field(1e-3, gt=0, description="rate of the inner steps")
    inner_steps: int = Field(1, ge=0, description="SGD steps on the incomplete rows; 0: no inner level")
    outer: Literal["complete", "both"] = Field(
        "complete", description="rows of the outer loss; both: the incomplete ones as well, as released"
    )
    priors: int = Field(10, ge=1, description="K, k-means centres per modality")
    min_count: int = Field(2, ge=1, description="complete rows that a class mean needs; 1 may reveal a row")
    weights: Literal["normal", "softplus"] = Field(
        "normal", description="of priors: drawn around 1, or softplus divided by their sum"
    )
    operation: Literal["multiply", "add"] = Field("multiply", description="how softplus(r) meets h^1")
    variance: Literal["learnt", "unit"] = Field("learnt", description="of r")
    penalty: Literal["kl", "matching"] = Field("kl", description="what keeps w and r in check")
    penalty_weight: float = Field(0.01, ge=0, description="0 leaves the penalty out")
    samples: int = Field(30, ge=1, description="draws of w and r per prediction")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled, of the outer Adam")


@dataclass(frozen=True)
class SMILState(TaskModels):
    """What the server keeps.

    Attributes:
        priors: task number -> ``prior.<modality>`` ``[K, F_m]`` and ``prior.known`` bool ``[M, K]``.
    """

    priors: ParameterTable


class SMIL(BranchAlgorithm):
    """Rebuilt features, a regularised head, and a start that adapts on incomplete rows."""

    Config = SMILConfig

    def setup(self, federation: Federation, generator: torch.Generator) -> SMILState:
        """One start per task; no modality has a prior."""
        start = super().setup(federation, generator)
        none = {
            number: {
                **{f"prior.{m}": torch.zeros(self.config.priors, n) for m, n in feature_sizes(task).items()},
                "prior.known": torch.zeros(len(task.modalities), self.config.priors, dtype=torch.bool),
            }
            for number, task in enumerate(federation.tasks)
        }
        return SMILState(
            shared={},
            personal=start.personal,
            models=start.models,
            task=start.task,
            priors=ParameterTable(none),
        )

    def initial_model(self, task: Task, generator: torch.Generator) -> ClientState:
        """Branches and head of 3FM and, drawn behind them, phi_c and phi_r."""
        c = self.config
        features = sum(feature_sizes(task).values())
        return {
            **super().initial_model(task, generator),
            **nn.init_linear("reconstruct", features, len(task.modalities) * c.priors, generator),
            **nn.init_linear("regularise", features, 2 * c.head_width, generator),
        }

    def broadcast(self, state: SMILState, client: Client) -> ClientState:
        """Send the model and the priors of the client's task."""
        return {**super().broadcast(state, client), **state.priors[client.task_index]}

    def client_phases(self) -> list[Phase]:
        """Passes of bilevel steps."""
        c = self.config
        outer = Adam(c.learning_rate, weight_decay=c.weight_decay)
        phase = Phase("bilevel", self.loss, ("*",), outer, c.batch_size, fixed=("prior",))
        return [phase] * int(c.local_epochs)

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Log of the mean probabilities over the draws, ``[B, C]``."""
        features, draws = self.features(params, inputs, absent(inputs)), self.config.samples
        drawn = []
        for draw in range(draws):
            noise = self.noise(features, 0, 1 + draw)
            h0 = self.rebuilt(params, features, inputs.present, noise)
            drawn.append(F.log_softmax(self._logits(params, h0, noise), dim=1))
        return torch.stack(drawn).logsumexp(dim=0) - math.log(draws)

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Outer loss at theta*, and the penalty."""
        c = self.config
        values, present = batch.inputs.values, batch.inputs.present
        kept = nn.named(values, c.support, batch.labels.device)
        only_support_lacks = nn.surely_complete(present)
        if only_support_lacks:
            # Which rows lack what is then known without the batch, also in a step that is recorded for many.
            present = torch.ones_like(present)
        every = torch.arange(len(batch.labels), device=kept.device) % c.support_every == 0
        present = present & (kept | ~every[:, None])
        complete = present.all(dim=1)
        drawn = context.noise(next(iter(values.values())), sum(self._noise_widths(values)))
        noise = self._parted(drawn, values)
        whole = _Rows(Inputs(values, present), batch.labels, noise)
        incomplete = whole.where(~complete)
        outer = whole
        if c.outer == "complete":
            # Where no complete row counts the others stand in, and those are in front of all complete ones.
            alone = ~(complete & whole.counted).any()
            outer = whole.counting(complete | alone).where(complete | (complete.cumsum(dim=0) == 0))

        theta = {n: t for n, t in params.items() if part_of(n) in _THETA}
        still = {n: t for n, t in params.items() if part_of(n) not in _THETA}
        nobody_has = absent(incomplete.inputs)
        if only_support_lacks and c.support is not None:
            nobody_has |= values.keys() - set(c.support)

        def inner(moving: ClientState) -> Tensor:
            adapting = {**still, **moving}
            features = self.features(adapting, incomplete.inputs, nobody_has)
            h0 = self.rebuilt(adapting, features, incomplete.inputs.present, incomplete.noise)
            return nn.cross_entropy(self._logits(adapting, h0, incomplete.noise), incomplete.labels)

        for _ in range(c.inner_steps):
            theta = nn.inner_step(inner, theta, c.inner_rate, second_order=c.order == "second")
        adapted = {**still, **theta}
        features = self.features(adapted, outer.inputs, absent(outer.inputs))
        h0 = self.rebuilt(adapted, features, outer.inputs.present, outer.noise)
        value = nn.cross_entropy(self._logits(adapted, h0, outer.noise), outer.labels)
        weight: float = c.penalty_weight
        if not weight:
            return value
        if c.penalty == "matching":
            return value + weight * self._matching(adapted, features, outer, kept)
        _, mu, sigma = self._regulariser(adapted, h0)
        of_r = _mean_over(outer.counted[:, None], normal_divergence(mu, sigma))
        return value + weight * (of_r + self._divergence_of_weights(adapted, incomplete, nobody_has))

    def noise(self, like: dict[str, Tensor], number: int, draw: int) -> Noise:
        """Standard normal draws for the rows and modalities of ``like``, modality -> ``[B, ...]``."""
        first = next(iter(like.values()))
        drawn = normal_rows(len(first), sum(self._noise_widths(like)), number, draw)
        return self._parted(drawn.to(first), like)

    def rebuilt(
        self, params: ClientState, features: dict[str, Tensor], present: Tensor, noise: Noise
    ) -> Tensor:
        """h^0: features side by side ``[B, sum F_m]``, those of absent modalities from the priors.

        Args:
            params: of the client.
            features: of :meth:`features`.
            present: bool ``[B, M]``.
            noise: of :meth:`noise`.
        """
        weights = self._weights(params, joined(features, present), noise.w)
        parts = [
            torch.where(present[:, m : m + 1], own, weights[:, m] @ params[f"prior.{name}"])
            for m, (name, own) in enumerate(features.items())
        ]
        return torch.cat(parts, dim=1)

    def hidden(self, params: ClientState, h0: Tensor, noise: Noise) -> Tensor:
        """h^1 behind its regularisation, ``[B, head_width]``."""
        h1, mu, sigma = self._regulariser(params, h0)
        factor = F.softplus(mu + sigma * noise.r)
        return h1 * factor if self.config.operation == "multiply" else h1 + factor

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """Send the model, and the class means of the features over the client's complete rows."""

        def features(inputs: Inputs) -> Tensor:
            return joined(self.features(params, inputs, absent(inputs)), inputs.present)

        means, counts = local_prototypes(features, client, self.config.min_count, complete=True)
        model = {n: t for n, t in params.items() if part_of(n) != "prior"}
        return {**model, "class.means": means, "class.count": counts}

    def aggregate(self, state: SMILState, uploads: Uploads, weights: Tensor) -> SMILState:
        """Average the models, and cluster the class means of each task into priors."""
        models = [{n: t for n, t in row.items() if part_of(n) != "class"} for row in uploads.rows()]
        state = super().aggregate(state, Uploads(uploads.clients, models), weights)
        tasks = state.task[[c.index for c in uploads.clients]]
        priors: dict[int, ClientState] = {}
        for number in tasks.unique().tolist():
            sent = uploads.select((tasks == number).nonzero().flatten().tolist())
            means = sent["class.means"][sent["class.count"] > 0]
            # Where no complete client took part, the last priors stay.
            if len(means):
                priors[number] = self._clustered(state.priors[number], means)
        return replace(state, priors=state.priors.replace(priors))

    def metrics(self, state: SMILState) -> dict[str, Any]:
        """Share of the priors that are known."""
        known = [state.priors[i]["prior.known"].flatten() for i in range(len(state.priors))]
        return {"prior_share": float(torch.cat(known).double().mean())}

    def _clustered(self, last: ClientState, means: Tensor) -> ClientState:
        tables = {n: t for n, t in last.items() if n != "prior.known"}
        parts = means.split([t.shape[1] for t in tables.values()], dim=1)
        found = [modality_priors(part, self.config.priors) for part in parts]
        known = torch.stack([known for _, known in found])
        return {**{n: centres for n, (centres, _) in zip(tables, found, strict=True)}, "prior.known": known}

    def _weights(self, params: ClientState, x: Tensor, noise: Tensor) -> Tensor:
        """Of the priors, ``[B, M, K]``; 0 for those not known."""
        known = params["prior.known"]
        sigma = self._spread(params, x)
        if self.config.weights == "softplus":
            counted = torch.where(known, sigma, 0.0)
            return counted / counted.sum(dim=2, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return torch.where(known, 1 + sigma * noise, 0.0) / known.sum(dim=1)[:, None].clamp(min=1)

    def _spread(self, params: ClientState, x: Tensor) -> Tensor:
        """``softplus(phi_c(x))``: ``[B, M, K]``."""
        spread = F.softplus(nn.linear(params, "reconstruct", x))
        return torch.stack(spread.split(self.config.priors, dim=1), dim=1)

    def _regulariser(self, params: ClientState, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h^1, and mu and sigma of r, ``[B, head_width]`` each."""
        h1 = F.relu(nn.linear(params, "head.0", h0))
        mu, sigma = nn.linear(params, "regularise", h0).chunk(2, dim=1)
        return h1, mu, torch.ones_like(mu) if self.config.variance == "unit" else F.softplus(sigma)

    def _logits(self, params: ClientState, h0: Tensor, noise: Noise) -> Tensor:
        return nn.linear(params, "head.1", self.hidden(params, h0, noise))

    def _noise_widths(self, like: dict[str, Tensor]) -> tuple[int, int]:
        """Numbers that a row takes for w and for r."""
        return len(like) * self.config.priors, self.config.head_width

    def _parted(self, drawn: Tensor, like: dict[str, Tensor]) -> Noise:
        w, r = drawn.split(self._noise_widths(like), dim=1)
        return Noise(w.reshape(len(drawn), len(like), self.config.priors), r)

    def _divergence_of_weights(self, params: ClientState, rows: _Rows, skipped: Set[str]) -> Tensor:
        """KL of w over the known priors of the modalities that are rebuilt; 0 where none is drawn."""
        if self.config.weights == "softplus":
            return rows.noise.w.new_zeros(())
        present = rows.inputs.present
        x = joined(self.features(params, rows.inputs, skipped), present)
        rebuilt = (~present & rows.counted[:, None])[:, :, None] & params["prior.known"]
        sigma = self._spread(params, x)
        return _mean_over(rebuilt, normal_divergence(torch.zeros_like(sigma), sigma))

    def _matching(
        self, params: ClientState, features: dict[str, Tensor], rows: _Rows, kept: Tensor
    ) -> Tensor:
        """How far h^1 with modalities rebuilt is from h^1 with the true ones, over complete rows."""
        present = rows.inputs.present
        counted = (rows.counted & present.all(dim=1))[:, None]
        truth = self.hidden(params, self.rebuilt(params, features, present, rows.noise), rows.noise).detach()
        alone = torch.eye(len(kept), dtype=torch.bool, device=kept.device)
        support = self.config.support
        lacks = support is not None and any(m not in support for m in features)
        hidden = [~kept] if lacks else list(alone) if len(kept) > 1 else []
        total = truth.new_zeros(())
        for pattern in hidden:
            h0 = self.rebuilt(params, features, present & ~pattern, rows.noise)
            distance = (self.hidden(params, h0, rows.noise) - truth).square()
            total = total + _mean_over(counted, distance) / len(hidden)
        return total


class Noise(NamedTuple):
    """Standard normal numbers: for the weights of the priors ``[B, M, K]``, for r ``[B, head_width]``."""

    w: Tensor
    r: Tensor


class _Rows(NamedTuple):
    """Rows of a batch with their noise; those labelled -100 do not count."""

    inputs: Inputs
    labels: Tensor
    noise: Noise

    @property
    def counted(self) -> Tensor:
        return self.labels != -100

    def counting(self, mask: Tensor) -> _Rows:
        """All rows, of which no others count."""
        return self._replace(labels=self.labels.masked_fill(~mask, -100))

    def where(self, mask: Tensor) -> _Rows:
        """Some of the rows: cut out where the mask can be read, otherwise relabelled."""
        rows = nn.known_rows(mask)
        if rows is None:
            return self.counting(mask)
        inputs = Inputs({m: x[rows] for m, x in self.inputs.values.items()}, self.inputs.present[rows])
        return _Rows(inputs, self.labels[rows], Noise(self.noise.w[rows], self.noise.r[rows]))


def modality_priors(means: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres of k-means over class means; the means themselves if there are not more than ``count``.

    Args:
        means: ``[N, F]``, of all complete clients; their order does not matter.
        count: K.

    Returns:
        Centres ``[K, F]``, zero where there are fewer, and bool ``[K]`` which there are.
    """
    centres = np.unique(means.double().cpu().numpy(), axis=0)
    if len(centres) > count:
        # On points this few several threads are slower; and they sum in another order.
        with threadpool_limits(1):
            centres = KMeans(count, n_init=10, random_state=0).fit(centres).cluster_centers_
    table = means.new_zeros(count, means.shape[1])
    table[: len(centres)] = torch.from_numpy(centres).to(table)
    return table, torch.arange(count, device=means.device) < len(centres)


def normal_divergence(mean: Tensor, sigma: Tensor) -> Tensor:
    """``KL(N(mean, sigma) || N(0, 1)) = (sigma^2 + mean^2 - 1 - ln sigma^2) / 2``, element by element."""
    variance = sigma.square().clamp(min=torch.finfo(sigma.dtype).tiny)
    return (variance + mean.square() - 1 - variance.log()) / 2


def _mean_over(mask: Tensor, values: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask``, which is broadcast, is True; 0 if it is nowhere."""
    counted = mask.expand(values.shape)
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
