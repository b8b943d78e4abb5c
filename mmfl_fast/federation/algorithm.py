"""What an algorithm is: the mathematics of one client and of the server. The engine does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation.optimisers import Optimiser, Sgd
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.streams import normal_rows

ClientState = dict[str, Tensor]


class Inputs(NamedTuple):
    """What a model sees of a batch.

    Attributes:
        values: modality -> ``[B, ...]``; an absent modality is a zero tensor of full width.
        present: bool ``[B, M]``, M in the order of ``values``.
    """

    values: dict[str, Tensor]
    present: Tensor


class Batch(NamedTuple):
    """Training rows of one client.

    Attributes:
        inputs: what the model sees.
        labels: int64 ``[B]``. Rows labelled -100 are padding: ``F.cross_entropy`` and the ops of this
            package ignore them, and a loss of your own has to.
    """

    inputs: Inputs
    labels: Tensor


class Context(NamedTuple):
    """What a loss may know beyond parameters and batch.

    Attributes:
        start: the client's state at the start of the round, as broadcast.
        round: number of the round, from 0.
    """

    start: ClientState
    round: int

    def noise(self, like: Tensor, width: int) -> Tensor:
        """Standard normal numbers of the round, ``[len(like), width]`` in ``like``'s dtype and on its device.

        They are a function of the round and of the row's place in its batch, the same for all clients and
        seeds and in every step, which keeps a loss pure; see :func:`normal_rows`.
        """
        return normal_rows(len(like), width, self.round, 0).to(like.device, like.dtype)


Loss = Callable[[ClientState, Batch, Context], Tensor]


@dataclass(frozen=True)
class Phase:
    """One pass of a client over its training rows, in shuffled batches.

    Phases of one name share the optimiser's memory within a round.

    Attributes:
        name: e.g. ``"personal"``.
        loss: pure function ``(params, batch, context) -> scalar``, of one client.
        trainable: parts that move; the part of ``"f.0.weight"`` is ``"f"``, and ``"*"`` is all of them.
        optimiser: how they move.
        batch_size: rows per step; the last batch of a pass may be smaller.
        after: applied to the parameters at the end of the pass, of one client or of a stack of them.
        largest_norm: of the gradient of all that moves, per client and step; a longer one is scaled down.
        fixed: parts that ``"*"`` leaves out.
    """

    name: str
    loss: Loss
    trainable: tuple[str, ...]
    optimiser: Optimiser
    batch_size: int
    after: Callable[[ClientState], ClientState] | None = None
    largest_norm: float | None = None
    fixed: tuple[str, ...] = ()

    def moving(self, params: ClientState) -> list[str]:
        """Names of the parameters that the phase trains, in order.

        Raises:
            ValueError: a part that the client does not have.
        """
        everything = "*" in self.trainable
        names = [
            n for n in params if part_of(n) in self.trainable or (everything and part_of(n) not in self.fixed)
        ]
        parts = {part_of(n) for n in names}
        absent = [p for p in self.trainable if p != "*" and p not in parts]
        if absent:
            raise ValueError(
                f"phase {self.name!r}: trainable part {absent[0]!r} is not among the client's parts "
                f"{sorted({part_of(n) for n in params})}"
            )
        return names


class AlgorithmConfig(BaseModel):
    """Options every algorithm has."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    batch_size: int = Field(64, ge=1, description="rows per optimiser step")
    local_epochs: int = Field(4, ge=1, description="local epochs per round")
    learning_rate: float = Field(0.01, gt=0, description="local learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(1e-5, ge=0, description="L2 factor")


@dataclass(frozen=True)
class State:
    """All an algorithm keeps between rounds; subclasses add fields of tensors or tables.

    Attributes:
        shared: what the server holds and every client starts from.
        personal: client index -> the parts that never leave it.
    """

    shared: dict[str, Tensor]
    personal: ParameterTable


class Uploads:
    """What the clients of a round sent, in the order of ``clients``.

    ``uploads["G"]`` stacks one name to ``[K, ...]``; ``rows("f")`` gives the K mappings of a part without
    a copy, the form that ``mf.ops`` reads in place.
    """

    def __init__(self, clients: Sequence[Client], rows: Sequence[Mapping[str, Tensor]]) -> None:
        self.clients = tuple(clients)
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that the first client sent; a selection of like clients shares them."""
        return tuple(self._rows[0])

    def __getitem__(self, name: str) -> Tensor:
        """Stack one name over the clients, ``[K, ...]``."""
        return torch.stack([row[name] for row in self._rows])

    def rows(self, part: str | None = None) -> Sequence[dict[str, Tensor]]:
        """K mappings, of everything sent or of one part."""
        return [
            {name: tensor for name, tensor in row.items() if part is None or part_of(name) == part}
            for row in self._rows
        ]

    def select(self, positions: Sequence[int]) -> Uploads:
        """The uploads of some of the clients, by position."""
        return Uploads([self.clients[p] for p in positions], [self._rows[p] for p in positions])


@cache
def part_of(name: str) -> str:
    """The part a parameter belongs to: what stands before the first dot."""
    return name.split(".", 1)[0]


class Algorithm:
    """Base class; override what differs from plain federated averaging.

    ``setup``, ``loss`` and ``predict`` are needed. Everything is written for one client; the engine maps
    it over all of them.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig
    personal: tuple[str, ...] = ()
    """Parts that stay with the client; the engine keeps them in ``State.personal``."""
    per_client: tuple[str, ...] = ()
    """Fields of the state that are tables with a row per client, kept by the server. ``client_state`` is for
    them as well as for ``State.personal``: on disk, a version can no longer be read once it is replaced."""

    def __init__(self, config: AlgorithmConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @property
    def tables_of_clients(self) -> tuple[str, ...]:
        """Fields of the state that ``client_state`` is for."""
        return ("personal", *self.per_client)

    def setup(self, federation: Federation, generator: torch.Generator) -> State:
        """Build the state before round 0; all randomness comes from ``generator`` (CPU)."""
        raise NotImplementedError(f"{type(self).__name__} must define setup()")

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Scalar loss of one client; pure, so that ``torch.func`` can map it."""
        raise NotImplementedError(f"{type(self).__name__} must define loss()")

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Logits ``[B, C]`` of a client's personalised model."""
        raise NotImplementedError(f"{type(self).__name__} must define predict()")

    def broadcast(self, state: Any, client: Client) -> ClientState:
        """What a client starts the round from: the shared parameters and its own."""
        return {**state.shared, **state.personal.get(client.index)}

    def client_phases(self) -> list[Phase]:
        """Passes of one round; the default trains everything on ``loss`` for ``local_epochs``."""
        c = self.config
        phase = Phase(
            "local", self.loss, ("*",), Sgd(c.learning_rate, c.momentum, c.weight_decay), c.batch_size
        )
        return [phase] * c.local_epochs

    def upload(self, params: ClientState, client: Client) -> dict[str, Tensor]:
        """What leaves the client: by default all that is not personal."""
        del client
        return {name: tensor for name, tensor in params.items() if part_of(name) not in self.personal}

    def aggregate(self, state: Any, uploads: Uploads, weights: Tensor) -> Any:
        """Server step; by default the weighted mean of what was uploaded.

        Args:
            state: the state, personal parts already brought up to date.
            uploads: of the K clients of this round.
            weights: float64 ``[K]``, share of training rows, summing to 1.
        """
        return replace(state, shared=ops.weighted_mean(uploads.rows(), weights))

    def metrics(self, state: Any) -> dict[str, Any]:
        """Plain numbers and lists of the algorithm's own for ``metrics.jsonl``."""
        del state
        return {}

    def similarity(self, state: Any) -> Tensor | None:
        """How alike the K clients of the federation were in the last round, for the report.

        Returns:
            Floating ``[K, K]`` in [0, 1], 0.5 for unrelated, NaN for who did not take part; None if the
            algorithm compares no clients. It is not asked for more clients than a report can show.
        """
        del state
        return None
