"""Whole rounds of local training: what ``mmfl-fast bench sim`` runs.

The plain loop is what a person writes: one model, one optimiser and one backward pass per batch, client after
client on one thread. "generic" is the engine on autograd, "native" the engine on recorded steps. On plain
FedAvg other simulators stand beside them, as far as they are installed, and everyone's round ends with the
mean of the clients' parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from mmfl_fast import algorithms, data, nn, ops
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import (
    Adam,
    Algorithm,
    AlgorithmConfig,
    Batch,
    ClientState,
    Context,
    Inputs,
    ParameterTable,
    Purpose,
    State,
    stream,
)
from mmfl_fast.federation.batching import gather, shuffled_rows
from mmfl_fast.federation.client_memory import ClientMemory
from mmfl_fast.federation.client_workers import map_clients, one_torch_thread
from mmfl_fast.federation.local_result import LocalResult
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.native_steps import NativeSteps
from mmfl_fast.federation.streams import torch_generator
from mmfl_fast.kernels import extension

from .machine import facts
from .peers import Peer, Problem, installed
from .peers.problem import module, train
from .timing import Contender, alternate

_CLIENTS = 100
_SEED = 0
# Parameters after a round, in norm, from those of the loop in float64. Where the loop itself is further off,
# as Adam's small gradients and a ReLU's kink make it, twice its distance counts.
_TOLERANCE = 1e-6
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    """One algorithm on clients of one size.

    Attributes:
        name: what the table calls it.
        federation: its clients take part all.
        algorithm: what they compute.
        target: ratio of native to plain time that is aimed at; None for none.
    """

    name: str
    federation: Federation
    algorithm: Algorithm
    target: float | None = None


class Perceptron(Algorithm):
    """Plain FedAvg on layers of the given widths, with a ReLU between them."""

    def __init__(self, widths: Sequence[int], batch_size: int) -> None:
        super().__init__(
            AlgorithmConfig(
                batch_size=batch_size, local_epochs=1, learning_rate=0.1, momentum=0.0, weight_decay=0.0
            )
        )
        self._widths = widths

    def setup(self, federation: Federation, generator: torch.Generator) -> State:
        del federation
        layers = [
            nn.init_linear(f"f.{i}", inputs, outputs, generator, relu=True)
            for i, (inputs, outputs) in enumerate(zip(self._widths, self._widths[1:], strict=False))
        ]
        return State({n: t for layer in layers for n, t in layer.items()}, ParameterTable({}))

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        return nn.mlp(params, "f", len(self._widths) - 1, inputs.values["x"])

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        del context
        return nn.cross_entropy(self.predict(params, batch.inputs), batch.labels)


def workloads() -> list[Workload]:
    """The two of the field's table, then algorithms of this package at the second's size."""
    small, large = equal_clients(_CLIENTS, 784, 50, 10), equal_clients(_CLIENTS, 512, 128, 10)
    found = [
        Workload("MLP 784-200-10, 50 samples, batch 10", small, Perceptron((784, 200, 10), 10), 0.15),
        Workload(
            "MLP 512-512-512-512, 128 samples, batch 64",
            equal_clients(_CLIENTS, 512, 128, 512),
            Perceptron((512, 512, 512, 512), 64),
            0.28,
        ),
    ]
    features = ("m3fed", "fedmeta", "per-fedavg", "meta-har", "fedmsplit", "mcarn")
    found += [Workload(name, large, _with_defaults(name, layers=2)) for name in features]
    sensors = _several(20, 32, {f"sensors{m}": (128, 3) for m in range(2)})
    found.append(Workload("mfcpl", sensors, _with_defaults("mfcpl")))
    pictures = _several(4, 40, {f"pictures{m}": (1, 28, 28) for m in range(3)})
    found += [Workload(n, pictures, _with_defaults(n, support=("pictures0",))) for n in ("3fm", "smil")]
    # Of the preset fedmvp-wikipedia-cpu.
    options = {"width": 64, "learning_rate": 1e-3, "local_epochs": 3, "incomplete": "keep"}
    pairs = _several(10, 217, {"image": (128,), "text": (10,)}, 10)
    pairs = data.with_missing(pairs, rate=0.5, level="sample", seed=_SEED)
    return [*found, *(Workload(n, pairs, _with_defaults(n, **options)) for n in ("fedmvp", "joint-fedavg"))]


def run(only: str, threads: int | None, seconds: float, json_file: Path | None, with_peers: bool) -> bool:
    """Check, measure and print.

    Args:
        only: text that a workload has in its name; empty for all.
        threads: of the engine; None for torch's.
        seconds: to spend on each workload.
        json_file: where to write the numbers; None for nowhere.
        with_peers: measure other simulators too, as far as they are installed.

    Returns:
        Whether all parameters agree. A missed target does not count.

    Raises:
        ValueError: no workload of such a name.
        ImportError: the extension is not built.
    """
    if extension.missing:
        raise ImportError(extension.missing)
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = [w for w in workloads() if only.lower() in w.name.lower()]
    if not chosen:
        raise ValueError(f"--only {only!r} is in the name of no workload")
    lines = [_measure(workload, seconds, with_peers) for workload in chosen]
    told = facts("cpu", None)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": told, "workloads": lines}, indent=2) + "\n")
    _print(lines, told)
    return all(line["right"] for line in lines)


def _with_defaults(name: str, **options: Any) -> Algorithm:
    kind = algorithms.get(name)
    return kind(kind.Config(**{"local_epochs": 1, **options}))


def equal_clients(count: int, width: int, samples: int, classes: int) -> Federation:
    """Clients of as many rows of noise each."""
    return _several(count, samples, {"x": (width,)}, classes)


def _several(count: int, samples: int, shapes: Mapping[str, tuple[int, ...]], classes: int = 6) -> Federation:
    """The same with rows of several modalities."""
    generator = np.random.default_rng(_SEED)
    rows = count * samples
    return data.from_arrays(
        {
            name: generator.standard_normal(size=(rows, *shape), dtype=np.float32)
            for name, shape in shapes.items()
        },
        np.arange(rows) % classes,
        np.repeat(np.arange(count), samples),
        split=np.full(rows, "train"),
        name="bench",
    )


class LocalRound:
    """The local training of a round of all clients: what differs between the contenders."""

    def __init__(self, workload: Workload) -> None:
        self._algorithm = workload.algorithm
        # Kept: of a large population a client is made anew whenever it is asked for.
        self._clients = list(workload.federation.clients)
        state = self._algorithm.setup(workload.federation, torch_generator(_SEED, Purpose.INITIALISATION))
        self._starts = [self._algorithm.broadcast(state, c) for c in self._clients]
        self._native, self._memory = NativeSteps(), ClientMemory()

    def engine(self, native: bool) -> list[LocalResult]:
        """As the engine does it."""
        phases = self._algorithm.client_phases()
        steps = self._native if native else None
        if native:
            self._native.prepare(self._clients, self._starts, phases, 0)
        self._memory.begin_round()

        def train(position: int) -> LocalResult:
            client, start = self._clients[position], self._starts[position]
            return train_clients([client], [start], phases, 0, _SEED, steps, self._memory)[0]

        return map_clients(train, range(len(self._clients)), _CPU)

    def plain(self, dtype: torch.dtype = torch.float32) -> list[ClientState]:
        """As a person would write it."""
        with one_torch_thread():
            return [
                self._plain_client(_cast(client, dtype), {n: _as(t, dtype) for n, t in start.items()})
                for client, start in zip(self._clients, self._starts, strict=True)
            ]

    def problem(self) -> Problem:
        """Of a :class:`Perceptron`, for other simulators: the same rows in the same order."""
        config, task = self._algorithm.config, self._clients[0].task
        draws = [stream(_SEED, Purpose.BATCHES, 0, client.index) for client in self._clients]
        rows = torch.stack([shuffled_rows(c, d) for c, d in zip(self._clients, draws, strict=True)])
        rows = rows.unflatten(1, (-1, config.batch_size))
        return Problem(
            inputs=task.inputs["x"][rows],
            labels=task.labels[rows],
            start=list(self._starts[0].values()),
            learning_rate=config.learning_rate,
            threads=torch.get_num_threads(),
        )

    def _plain_client(self, client: Client, start: ClientState) -> ClientState:
        draw = stream(_SEED, Purpose.BATCHES, 0, client.index)
        if isinstance(self._algorithm, Perceptron):
            return _module_loop(client, start, shuffled_rows(client, draw), self._algorithm.config)
        params, context = {n: t.clone() for n, t in start.items()}, Context(start, 0)
        optimisers: dict[str, tuple[Optimizer, LRScheduler | None]] = {}
        phases = self._algorithm.client_phases()
        for phase, rows in zip(phases, [shuffled_rows(client, draw) for _ in phases], strict=True):
            leaves = [params[n].requires_grad_() for n in phase.moving(params)]
            optimiser, schedule = optimisers.setdefault(phase.name, _of_torch(phase.optimiser, leaves))
            for batch in rows.split(phase.batch_size):
                optimiser.zero_grad()
                phase.loss(params, gather(client.task, batch), context).backward()
                if phase.largest_norm is not None:
                    torch.nn.utils.clip_grad_norm_(leaves, phase.largest_norm)
                optimiser.step()
                if schedule is not None:
                    schedule.step()
            for leaf in leaves:
                leaf.requires_grad_(False)
            if phase.after is not None:
                params = phase.after(params)
        return params


def _of_torch(optimiser: Any, leaves: list[Tensor]) -> tuple[Optimizer, LRScheduler | None]:
    rate, decay = optimiser.learning_rate, optimiser.weight_decay
    if not isinstance(optimiser, Adam):
        return torch.optim.SGD(leaves, rate, optimiser.momentum, 0, decay), None
    adam, period = torch.optim.AdamW(leaves, rate, weight_decay=decay), optimiser.cosine_period
    return adam, None if period is None else CosineAnnealingLR(adam, period)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _cast(client: Client, dtype: torch.dtype) -> Client:
    if dtype == torch.float32:
        return client
    inputs = {name: x.to(dtype) for name, x in client.task.inputs.items()}
    return replace(client, task=replace(client.task, inputs=inputs))


def _module_loop(client: Client, start: ClientState, rows: Tensor, config: AlgorithmConfig) -> ClientState:
    model = module(list(start.values()))
    batches = rows.split(config.batch_size)
    inputs, labels = client.task.inputs["x"], client.task.labels
    train(model, (inputs[b] for b in batches), (labels[b] for b in batches), config.learning_rate)
    return {n: p.detach() for n, p in zip(start, model.parameters(), strict=True)}


def _measure(workload: Workload, seconds: float, with_peers: bool) -> dict[str, Any]:
    training = LocalRound(workload)
    peers: dict[str, Peer] = {}
    try:
        exact = [_flat(params) for params in training.plain(torch.float64)]
        found = {
            "plain": training.plain(),
            "native": [r.params for r in training.engine(native=True)],
            "generic": [r.params for r in training.engine(native=False)],
        }
        errors = {name: _distance(list(map(_flat, rows)), exact) for name, rows in found.items()}
        calls: dict[str, Callable[[], Any]] = {
            "native": lambda: training.engine(native=True),
            "generic": lambda: training.engine(native=False),
            "plain": training.plain,
        }
        if with_peers and isinstance(workload.algorithm, Perceptron):
            calls = {name: _with_mean(call) for name, call in calls.items()}
            mean = [torch.stack(exact).mean(dim=0)]
            for name, contestant in installed().items():
                peers[name] = contestant(training.problem())
                theirs = torch.cat([t.flatten() for t in peers[name].round()]).double()
                errors[name] = _distance([theirs], mean)
                calls[name] = peers[name].round
        line: dict[str, Any] = {
            "workload": workload.name,
            "errors": errors,
            "right": max(errors.values()) <= max(_TOLERANCE, 2 * errors["plain"]),
        }
        if not line["right"]:
            return line
        timings = alternate({n: Contender([c], "auto") for n, c in calls.items()}, "cpu", seconds)
        line |= {name: asdict(timing) for name, timing in timings.items()}
        line["ratio"] = {n: timings[n].p50 / timings["plain"].p50 for n in calls if n != "plain"}
        line["target"] = workload.target
        return line
    finally:
        for peer in peers.values():
            peer.close()


def _with_mean(call: Callable[[], Sequence[LocalResult | ClientState]]) -> Callable[[], ClientState]:
    def both() -> ClientState:
        rows = [r.params if isinstance(r, LocalResult) else r for r in call()]
        mean: ClientState = ops.weighted_mean(rows, torch.ones(len(rows)))
        return mean

    return both


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative distance in norm, over all parameters of all clients."""
    squares = [(a - b).square().sum() for a, b in zip(found, expected, strict=True)]
    return float((torch.stack(squares).sum() / sum(b.square().sum() for b in expected)).sqrt())


def _flat(params: ClientState) -> Tensor:
    return torch.cat([t.detach().flatten() for t in params.values()]).double()


def _print(lines: Sequence[dict[str, Any]], told: dict[str, Any]) -> None:
    table = Table(title=", ".join(f"{k} {v}" for k, v in told.items()), title_justify="left", box=None)
    for column in ("local training", "error", "of plain", "plain [ms]", "target"):
        table.add_column(column, justify="left" if column.startswith("local") else "right")
    others = list(dict.fromkeys(name for line in lines for name in line.get("ratio", ())))
    for name in others:
        table.add_column(f"{name} / plain", justify="right")
    for line in lines:
        errors = dict(line["errors"])
        of_plain = f"{errors.pop('plain'):.1e}"
        error = f"{max(errors.values()):.1e}"
        if not line["right"]:
            table.add_row(line["workload"], error, of_plain, "WRONG RESULT, not timed")
            continue
        ratio, target = line["ratio"], line["target"]
        judged = "" if target is None else f"<= {target}, {'met' if ratio['native'] <= target else 'MISSED'}"
        numbers = [f"{ratio[name]:.2f}" if name in ratio else "" for name in others]
        table.add_row(line["workload"], error, of_plain, f"{line['plain']['p50']:.1f}", judged, *numbers)
    Console(width=None if Console().is_terminal else 170).print(table)
