"""The engine: rounds of an algorithm over a federation. It knows no algorithm by name."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mmfl_fast.data import Client, Federation
from mmfl_fast.federation.agreement import refuse_differing, same_state
from mmfl_fast.federation.algorithm import Algorithm, ClientState, State, part_of
from mmfl_fast.federation.checkpoints import to_device
from mmfl_fast.federation.client_memory import ClientMemory
from mmfl_fast.federation.client_outcomes import Outcome, outcomes_of_all
from mmfl_fast.federation.client_stack import ClientStacks
from mmfl_fast.federation.client_workers import map_clients, one_torch_thread
from mmfl_fast.federation.cohorts import ChunkSizes, cut_cohorts
from mmfl_fast.federation.config import EngineConfig
from mmfl_fast.federation.disk_table import DiskTable
from mmfl_fast.federation.evaluation import Evaluation, evaluate, predictions
from mmfl_fast.federation.garbage import searched_once
from mmfl_fast.federation.launches import record_launches
from mmfl_fast.federation.local_result import LocalResult
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.mixed_precision import in_bfloat16
from mmfl_fast.federation.modality_alone import modality_alone
from mmfl_fast.federation.native_steps import NativeSteps
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.progress import RoundProgress
from mmfl_fast.federation.rank_shares import share_by_cost
from mmfl_fast.federation.ranks import Ranks, is_first, joined
from mmfl_fast.federation.run_directory import shown_in_reports
from mmfl_fast.federation.sampling import evaluated_clients, sample_clients, sample_indices
from mmfl_fast.federation.shared_disk_table import SharedDiskTable
from mmfl_fast.federation.shared_evaluation import predictions_of_all
from mmfl_fast.federation.shared_run_directory import SharedRunDirectory
from mmfl_fast.federation.standardisation import standardise
from mmfl_fast.federation.stopwatch import Stopwatch, started
from mmfl_fast.federation.streams import Purpose, torch_generator
from mmfl_fast.kernels.backend import chosen

_log = logging.getLogger(__name__)


class DivergedError(ArithmeticError):
    """A client's parameters are no longer finite."""


@dataclass(frozen=True)
class RunResult:
    """What a run returns.

    Attributes:
        final: ``accuracy``, ``macro_f1``, ``uar``, ``pooled_accuracy``, ``per_dataset`` and ``per_client`` on
            the test rows after the last round; see :class:`~mmfl_fast.federation.evaluation.Evaluation`.
        history: metrics of every evaluated round.
        state: the algorithm's state after the last round.
        out: the run directory, if there is one.
    """

    final: dict[str, Any]
    history: list[dict[str, Any]]
    state: Any
    out: Path | None


def simulate(
    federation: Federation,
    algorithm: Algorithm,
    *,
    rounds: int,
    seed: int = 0,
    engine: EngineConfig | None = None,
    out: Path | None = None,
    described: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool | None = None,
    label: str | None = None,
) -> RunResult:
    """Run an algorithm for some rounds.

    Processes that torchrun started, or that ``torch.distributed`` connects, share the clients of each round;
    all call this alike and return the same. Rank 0 alone writes and shows progress.

    Args:
        federation: data and clients.
        algorithm: what a client and the server compute.
        rounds: how many, counted from the start also when resuming.
        seed: fixes initialisation, sampling and batches.
        engine: options of the engine.
        out: run directory; None keeps nothing.
        described: plain data that fixes the run, kept in ``config.yaml`` and compared on resume.
        resume: continue the run in ``out``.
        progress: show a bar; None shows it on a terminal.
        label: of the bar.

    Raises:
        ValueError: no client has a training row, or the run in ``out`` has more rounds behind it; there are
            more processes than clients in a round, or processes that were not started alike.
        RunDirectoryError, CheckpointError: ``out`` holds something else, or is in use, or is damaged.
        DivergedError: a client's parameters became non-finite; names the client and the round.
        RankError: another process died or failed; names it, and says how to go on.
    """
    engine = engine or EngineConfig()
    if is_first() and not len(federation.clients.tested):
        warnings.warn(f"federation {federation.name!r} has no test row: its scores are NaN", stacklevel=2)
    lines: list[dict[str, Any]] = []
    evaluation: Evaluation | None = None
    directory: SharedRunDirectory | None = None
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        config = {**(described or {}), "rounds": rounds, "seed": seed}
        if out is not None or ranks.world > 1:
            config["data_digest"] = digest(federation)
        if ranks.world > 1:
            refuse_differing(ranks, _facts(config, algorithm, engine, out, resume))
        run = ranks.everywhere(lambda: _Run(federation, algorithm, seed, engine, ranks, out))
        ranks.connect_gpus(run.device)
        state, done = run.initial_state, 0
        if out is not None:
            directory = stack.enter_context(SharedRunDirectory(ranks, out, config, resume))
            state, done, lines = directory.restore(state)
            state = to_device(state, run.device)
            if done > rounds:
                raise ValueError(f"rounds: the run in {out} has {done} rounds behind it; got {rounds}")
            directory.describe(federation.clients)
        shown = progress if ranks.first else False
        bar = stack.enter_context(RoundProgress(label or type(algorithm).__name__, rounds, done, shown))
        for number in range(done, rounds):
            if directory is not None and ranks.world > 1:
                directory.whole(number, state)
            state, line = run.round(state, number)
            last = number + 1 == rounds
            if last or (number + 1) % engine.evaluate_every == 0:
                evaluation = run.evaluate(state)
                scores = evaluation.as_dict()
                del scores["per_client"]
                line.update(scores)
            lines.append(line)
            if directory is not None:
                directory.append_metrics(line)
                pictured = "accuracy" in line and shown_in_reports(len(federation.clients))
                similarity = algorithm.similarity(state) if pictured else None
                if similarity is not None:
                    directory.keep_similarity(number + 1, similarity)
                if last or (number + 1) % engine.checkpoint_every == 0:
                    directory.checkpoint(number + 1, state)
            bar.advance(line)
            if number == done:
                # The first round imports and records what all others need.
                stack.enter_context(searched_once())
        if evaluation is None:
            evaluation = run.evaluate(state)
        final = evaluation.as_dict()
        if directory is not None:
            directory.finish({**final, "per_client": final["per_client"].tolist(), "rounds": rounds})
    return RunResult(final, [line for line in lines if "accuracy" in line], state, out)


def _facts(
    config: Mapping[str, Any], algorithm: Algorithm, engine: EngineConfig, out: Path | None, resume: bool
) -> dict[str, Any]:
    """What all processes of a run must have in common."""
    return {
        **{name: value for name, value in config.items() if name not in ("command", "config")},
        "algorithm": type(algorithm).__name__,
        **algorithm.config.model_dump(by_alias=True),
        **engine.model_dump(),
        "resume": resume,
        "run directory": out is not None,
    }


def digest(federation: Federation) -> str:
    """Hash of all rows, labels, owners, splits and server's items: federations of one digest train alike."""
    hasher = hashlib.blake2b(digest_size=16)
    for task in federation.tasks:
        shapes = {name: tuple(tensor.shape) for name, tensor in task.inputs.items()}
        hasher.update(repr((task.name, shapes, task.num_classes, task.client_names)).encode())
        inputs = (*task.inputs.values(), *task.server_items.values())
        for tensor in (*inputs, task.present, task.labels, task.owner, task.is_train):
            hasher.update(tensor.cpu().contiguous().reshape(-1).numpy().data)
    return hasher.hexdigest()


class _Run:
    """Data in place, workers up, one algorithm: what all rounds share."""

    def __init__(
        self,
        federation: Federation,
        algorithm: Algorithm,
        seed: int,
        engine: EngineConfig,
        ranks: Ranks,
        out: Path | None = None,
    ) -> None:
        self._ranks = ranks
        self.device = ranks.own_gpu(resolve_device(engine.device))
        self._algorithm = algorithm
        self._seed = seed
        self._engine = engine
        prepared = standardise(federation) if engine.standardise else federation
        self._federation = move(prepared, self.device)
        if not len(self._federation.clients.trainable):
            raise ValueError(f"federation {federation.name!r}: no client has a training row")
        taking_part = len(sample_clients(self._federation.clients, engine.participation, 0, seed))
        if ranks.world > taking_part:
            raise ValueError(
                f"{ranks.world} processes for {taking_part} clients in a round: start {taking_part} at most"
            )
        modalities = dict.fromkeys(m for task in federation.tasks for m in task.modalities)
        self._alone = {m: modality_alone(self._federation, m) for m in modalities if engine.test_alone}
        self._chunk_sizes = ChunkSizes(engine.chunk, engine.memory_gib)
        self._memory = ClientMemory() if self.device.type == "cpu" else None
        record = record_launches if engine.step_graphs == "auto" else None
        self._stacks = None if self.device.type == "cpu" else ClientStacks(record)
        self._native = NativeSteps() if engine.native_steps == "auto" else None
        if self._native is not None and engine.precision != "float32":
            _log.debug("local training takes the generic path: native steps know no %s", engine.precision)
            self._native = None
        generator = torch_generator(seed, Purpose.INITIALISATION)
        # One thread: LAPACK's factorisations round differently on several.
        with one_torch_thread():
            state = algorithm.setup(self._federation, generator)
        if engine.client_state == "disk":
            files: dict[str, Any] = {n: self._on_disk(state, n, out) for n in algorithm.tables_of_clients}
            state = replace(state, **files)
        self.initial_state: State = to_device(state, self.device)
        self._tested = evaluated_clients(self._federation.clients, engine.evaluate_clients, seed)

    def round(self, state: State, number: int) -> tuple[State, dict[str, Any]]:
        began = time.perf_counter()
        engine = self._engine
        clients = sample_clients(self._federation.clients, engine.participation, number, self._seed)
        shares = share_by_cost(
            [c.num_train for c in clients], [c.task_index for c in clients], self._ranks.world
        )
        mine = [clients[p] for p in shares[self._ranks.rank]]
        starts = [self._algorithm.broadcast(state, c) for c in mine]
        soon = sample_indices(self._federation.clients, engine.participation, number + 1, self._seed)
        for table in self._algorithm.tables_of_clients:
            getattr(state, table).read_ahead(soon)
        outcomes, uploads = outcomes_of_all(
            self._ranks,
            clients,
            shares,
            lambda: self._train(mine, starts, number),
            self.device,
            kept_everywhere=engine.client_state == "memory",
        )
        self._refuse_diverged(clients, outcomes, number)
        trained = time.perf_counter()

        kept = {c.index: o.kept for c, o in zip(clients, outcomes, strict=True) if o.kept}
        sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64, device=self.device)
        before = replace(state, personal=state.personal.replace(kept))
        state = self._algorithm.aggregate(before, uploads, sizes / sizes.sum())
        state = same_state(self._ranks, before, state, self.device)
        ended = time.perf_counter()

        passes = [o.seconds for o in outcomes]
        line: dict[str, Any] = {
            "round": number + 1,
            "clients": len(clients),
            "train_loss": float(torch.tensor([o.loss for o in outcomes], dtype=torch.float64).mean()),
            "optimiser_steps": sum(o.steps for o in outcomes),
            "samples_seen": sum(o.samples for o in outcomes),
            "bytes_up": sum(o.bytes_up for o in outcomes),
            "bytes_down": sum(o.bytes_down for o in outcomes),
            **self._algorithm.metrics(state),
            "seconds": {
                "clients": trained - began,
                "server": ended - trained,
                "client_pass": fmean(passes),
                "client_pass_per_dataset": _means_per_dataset(clients, passes),
            },
        }
        return state, line

    def evaluate(self, state: State) -> Evaluation:
        everyone = self._federation.clients

        def predict(clients: Sequence[Client]) -> list[Tensor]:
            # Its own parts are those of the client as it trained, whatever its test rows are left with.
            classes = map_clients(
                lambda c: predictions(
                    self._algorithm, self._algorithm.broadcast(state, everyone[c.index]), c
                ),
                clients,
                self.device,
            )
            # One transfer from a GPU, for all clients.
            return list(torch.cat(classes).cpu().split([len(c) for c in classes])) if classes else []

        def predict_all(clients: Sequence[Client]) -> list[Tensor]:
            return predictions_of_all(self._ranks, predict, clients)

        found = evaluate(self._federation, predict_all, self._tested)
        alone = {
            f"{name}, {modality} alone": scores
            for modality, federation in self._alone.items()
            for name, scores in evaluate(
                federation, predict_all, self._tested_in(federation)
            ).per_dataset.items()
        }
        return replace(found, per_dataset={**found.per_dataset, **alone})

    def _tested_in(self, federation: Federation) -> list[Client]:
        """Those of the tested clients that have test rows in a federation of the same clients."""
        found = (federation.clients[c.index] for c in self._tested)
        return [client for client in found if len(client.test_rows)]

    def _train(self, clients: list[Client], starts: list[ClientState], number: int) -> list[Outcome]:
        """Return what training made of each client."""
        phases = self._algorithm.client_phases()
        if self._engine.precision == "bfloat16":
            phases = in_bfloat16(phases, self.device)
        chunks = cut_cohorts(clients, starts, phases, self._chunk_sizes)
        native = self._native
        if native is not None and chosen("client_step", self.device) == "native":
            native.prepare(clients, starts, phases, number)
        else:
            native = None
        memory = self._memory
        if memory is not None:
            memory.begin_round()
        if self._stacks is not None:
            self._stacks.begin_round()

        def train(chunk: list[int]) -> tuple[list[LocalResult], list[dict[str, Tensor]], Stopwatch]:
            self._ranks.refuse_if_stopped()
            stopwatch = started(self.device)
            results = train_clients(
                [clients[p] for p in chunk],
                [starts[p] for p in chunk],
                phases,
                number,
                self._seed,
                native,
                memory,
                self._stacks,
            )
            uploads = [
                self._algorithm.upload(r.params, clients[p]) for p, r in zip(chunk, results, strict=True)
            ]
            stopwatch.stop()
            return results, uploads, stopwatch

        by_position: dict[int, tuple[LocalResult, dict[str, Tensor], float]] = {}
        for chunk, (results, uploads, stopwatch) in zip(
            chunks, map_clients(train, chunks, self.device), strict=True
        ):
            seconds = stopwatch.seconds() / len(chunk)
            by_position.update({p: (r, u, seconds) for p, r, u in zip(chunk, results, uploads, strict=True)})
        trained = [by_position[p] for p in range(len(clients))]
        personal = self._algorithm.personal
        # One transfer each from a GPU, for all clients.
        losses = torch.stack([r.loss for r, _, _ in trained]).tolist()
        finite = torch.stack([r.finite for r, _, _ in trained]).tolist()
        return [
            Outcome(
                sent=sent,
                kept={n: t for n, t in result.params.items() if part_of(n) in personal or "*" in personal},
                loss=losses[p],
                steps=result.steps,
                samples=result.samples,
                finite=finite[p],
                seconds=seconds,
                bytes_up=_bytes(sent),
                bytes_down=_bytes(
                    {n: t for n, t in starts[p].items() if part_of(n) not in personal and "*" not in personal}
                ),
            )
            for p, (result, sent, seconds) in enumerate(trained)
        ]

    def _on_disk(self, state: State, name: str, out: Path | None) -> DiskTable:
        """One of the state's tables, in files."""
        table: ParameterTable = getattr(state, name)
        folder = None if out is None else out / name
        if self._ranks.world == 1:
            return DiskTable(table, folder, self.device)
        kept_by_server = name != "personal"
        return SharedDiskTable(table, folder, self.device, self._ranks, same_everywhere=kept_by_server)

    def _refuse_diverged(self, clients: list[Client], outcomes: list[Outcome], number: int) -> None:
        for client, outcome in zip(clients, outcomes, strict=True):
            if not outcome.finite:
                raise DivergedError(
                    f"client {client.name!r} has non-finite parameters after round {number + 1}: "
                    f"lower the learning rate, or look for extreme values in its data"
                )


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is the GPU where there is one.

    Raises:
        ValueError: not a device, or one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda[:index]'; got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda[:index]'; got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no GPU here")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {name!r} was asked for, but torch sees {count} GPUs here")
    return device


def move(federation: Federation, device: torch.device) -> Federation:
    """Return the federation with its tensors on a device; row numbers stay on the CPU."""
    if device.type == "cpu":
        return federation
    tasks = tuple(
        replace(
            task,
            inputs={name: tensor.to(device) for name, tensor in task.inputs.items()},
            server_items={name: tensor.to(device) for name, tensor in task.server_items.items()},
            present=task.present.to(device),
            labels=task.labels.to(device),
        )
        for task in federation.tasks
    )
    return Federation(federation.name, tasks)


def _means_per_dataset(clients: Sequence[Client], values: Sequence[float]) -> dict[str, float]:
    members: dict[str, list[float]] = {}
    for client, value in zip(clients, values, strict=True):
        members.setdefault(client.task.name, []).append(value)
    return {name: fmean(own) for name, own in members.items()}


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
