"""What a run will need, found out before anything is spent."""

from __future__ import annotations

import math
import tempfile
import time
import tracemalloc
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmfl_fast.data import Client, Federation
from mmfl_fast.federation.algorithm import Algorithm, ClientState, Phase, State, part_of
from mmfl_fast.federation.checkpoints import to_device
from mmfl_fast.federation.client_memory import ClientMemory
from mmfl_fast.federation.client_workers import one_torch_thread
from mmfl_fast.federation.cohorts import ChunkSizes, cut_cohorts
from mmfl_fast.federation.config import EngineConfig
from mmfl_fast.federation.disk_table import BYTES_PER_ROW, SLOTS
from mmfl_fast.federation.evaluation import predictions
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.machine_limits import Room, free_disk, free_memory
from mmfl_fast.federation.mixed_precision import in_bfloat16
from mmfl_fast.federation.native_steps import NativeSteps, why_not_native
from mmfl_fast.federation.parameter_table import BYTES_PER_REPLACED_ROW, ParameterTable
from mmfl_fast.federation.ranks import processes
from mmfl_fast.federation.run_directory import shown_in_reports
from mmfl_fast.federation.sampling import sample_size
from mmfl_fast.federation.simulation import move, resolve_device
from mmfl_fast.federation.standardisation import standardise
from mmfl_fast.federation.streams import Purpose, torch_generator
from mmfl_fast.federation.thinning import thinned
from mmfl_fast.kernels.backend import chosen

# Clients that the state is set up for; a prime, by which an axis over the clients is told from others.
_SET_UP = 211
# Clients of a task whose training is timed.
_TIMED = 4
# A state in its checkpoint: its own copy, and its bytes on the way to the file.
_CHECKPOINT_COPIES = 2
_CHECKPOINTS_ON_DISK = 3


@dataclass(frozen=True)
class Needs:
    """Bytes of memory in each process, beyond what it has already taken, which the data in memory belong to.

    Attributes:
        standardised: second copy of the inputs.
        setting_up: what Python keeps of each client while the algorithm sets up its state.
        personal: what clients keep to themselves, or the server for each.
        server: all else in the state, and its successor.
        round: models of the clients that take part, and what processes send each other of them.
    """

    standardised: int
    setting_up: int
    personal: int
    server: int
    round: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Measured:
    """What was found out on a few clients.

    Attributes:
        clients: that the state was set up for.
        timed: whose training was timed.
        model: bytes of a client's parameters, the largest.
        parameters: their number, least and most.
        setting_up: bytes of Python's own for a client while the state is set up.
        personal: bytes of them that stay with the client, mean.
        kept_for: bytes that the server keeps in tables for a client, mean.
        up: bytes that a client sends, mean.
        down: bytes that it is sent, mean.
        server: bytes of the rest of the state, scaled to all clients.
        of_all_pairs: bytes of these that grow with the square of the clients.
        of_a_pair: bytes of each pair of clients of a round.
        similarity: whether a picture of all pairs of clients is kept of every evaluated round.
        chunk: clients in a stack.
        steps: pass -> ``"native"``, or why it takes autograd.
        train_seconds: of a client in a round, on one thread.
        test_seconds: of a client that is tested, on one thread.
    """

    clients: int
    timed: int
    model: int
    parameters: tuple[int, int]
    setting_up: float
    personal: float
    kept_for: float
    up: float
    down: float
    server: int
    of_all_pairs: int
    of_a_pair: int
    similarity: bool
    chunk: int
    steps: dict[str, str]
    train_seconds: float
    test_seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a run will need, and what there is.

    Attributes:
        clients: registered.
        trainable: of them with training rows.
        sampled: that take part in a round.
        tested: in an evaluation.
        inputs: bytes of the tasks' inputs that are in memory, and of the server's items.
        mapped: bytes of those that are in files.
        measured: on a few clients.
        rounds: of the run.
        engine: options.
        memory: what is free.
        disk: free at the run directory.
        scratch: free for temporary files.
        threads: of a process, that share its clients of a round.
        world: processes that share the run.
        here: of them on this machine.
    """

    clients: int
    trainable: int
    sampled: int
    tested: int
    inputs: int
    mapped: int
    measured: Measured
    rounds: int
    engine: EngineConfig
    memory: Room
    disk: int
    scratch: int
    threads: int
    world: int = 1
    here: int = 1

    def needs(self, engine: EngineConfig, sampled: int) -> Needs:
        """Memory of a process with other options."""
        m = self.measured
        replaced = self._replaced(sampled)
        in_memory = (1 + _CHECKPOINT_COPIES) * int(replaced * (m.personal + m.kept_for))
        on_disk = engine.client_state == "disk"
        mine = -(-sampled // self.world)
        # A part of what all sent, and what this process's clients send to the others; and in memory every
        # process has what became of all.
        exchanged = 2 * mine * m.up if self.world > 1 else 0
        kept = (mine if on_disk else sampled) * m.personal + sampled * m.kept_for
        return Needs(
            standardised=self.inputs if engine.standardise else 0,
            setting_up=int(self.clients * m.setting_up),
            personal=self.clients * BYTES_PER_ROW
            if on_disk
            else in_memory + replaced * BYTES_PER_REPLACED_ROW,
            server=(1 + _CHECKPOINT_COPIES) * (m.server + sampled**2 * m.of_a_pair),
            # What is kept is there twice: in the model, and as it was read or was before.
            round=int(mine * m.model + kept + exchanged),
        )

    def _replaced(self, sampled: int) -> int:
        """Clients at most whose state is no longer as it was set up, at the end."""
        return min(self.clients, self.rounds * sampled)

    @property
    def disk_needed(self) -> int:
        """Bytes in the run directory."""
        m, kept = self.measured, 0
        checkpoint = m.server + self.sampled**2 * m.of_a_pair
        if self.engine.client_state == "disk":
            checkpoint += 2 * self.clients
            kept = int(self._replaced(self.sampled) * SLOTS * (m.personal + m.kept_for))
        else:
            checkpoint += int(self._replaced(self.sampled) * (m.personal + m.kept_for))
        if m.similarity:
            kept += -(-self.rounds // self.engine.evaluate_every) * 2 * self.clients**2
        return _CHECKPOINTS_ON_DISK * checkpoint + kept

    @property
    def round_seconds(self) -> float:
        """Training of a round's clients; the server's step comes on top."""
        return -(-self.sampled // self.world) * self.measured.train_seconds / self.threads

    @property
    def evaluation_seconds(self) -> float:
        """One evaluation."""
        return -(-self.tested // self.world) * self.measured.test_seconds / self.threads

    @property
    def run_seconds(self) -> float:
        """All rounds with their evaluations."""
        evaluations = -(-self.rounds // self.engine.evaluate_every)
        return self.rounds * self.round_seconds + evaluations * self.evaluation_seconds

    def refusal(self) -> str | None:
        """Why the run cannot fit and the setting that would make it, or None."""
        needed, free = self._together(self.engine, self.sampled), self.memory.free
        if needed > free:
            several = f" in {self.here} processes" if self.here > 1 else ""
            return (
                f"memory: the run needs {in_bytes(needed)} more{several}, {self.memory.bound} has "
                f"{in_bytes(free)}; {self._remedy()}"
            )
        if self.disk_needed > self.disk:
            return (
                f"disk: checkpoints and the state of clients need {in_bytes(self.disk_needed)}, "
                f"{in_bytes(self.disk)} are free; choose a folder on a larger disk with --out"
            )
        if self.engine.client_state == "disk" and self.here < self.world:
            return "client_state=disk is for processes of one machine; it needs --set client_state=memory"
        if self.engine.standardise and self.here * self.mapped > self.scratch:
            return (
                f"disk: standardised rows need {in_bytes(self.here * self.mapped)} of temporary files, "
                f"{in_bytes(self.scratch)} are free; set TMPDIR to a larger disk, or standardise=false"
            )
        return None

    def _together(self, engine: EngineConfig, sampled: int) -> int:
        """Memory of the processes on this machine; the others' data are not there yet."""
        return self.here * self.needs(engine, sampled).total + (self.here - 1) * self.inputs

    def _remedy(self) -> str:
        engine, free = self.engine, self.memory.free
        settings: list[str] = []
        for name, value in (("client_state", "disk"), ("standardise", False)):
            other = engine.model_copy(update={name: value})
            if name == "client_state" and self.here < self.world:
                continue
            if self._together(other, self.sampled) < self._together(engine, self.sampled):
                engine = other
                settings.append(f"{name}={str(value).lower()}")
                if self._together(engine, self.sampled) <= free:
                    return f"it fits with {' '.join(f'--set {s}' for s in settings)}"
        # It grows with the sample.
        fitting = bisect_right(range(1, self.sampled), free, key=lambda n: self._together(engine, n))
        if fitting >= self.world:
            # Rounded down, so that it surely fits.
            share = int(1e6 * fitting / self.trainable) / 1e6
            if share > 0:
                settings.append(f"participation={share:g}")
                return f"it fits with {' '.join(f'--set {s}' for s in settings)}"
        m = self.measured
        pairs = f", {in_bytes(m.of_all_pairs)} of it for all pairs of clients" if m.of_all_pairs else ""
        fewer = ", fewer processes" if self.here > 1 else ""
        return (
            f"no setting of the engine helps: the server's own state takes {in_bytes(m.server)}{pairs}; "
            f"take fewer clients{fewer}, a smaller model or another algorithm"
        )


def forecast(
    federation: Federation,
    algorithm: Algorithm,
    *,
    rounds: int,
    seed: int = 0,
    engine: EngineConfig | None = None,
    out: Path | None = None,
) -> Forecast:
    """Find out what a run of the same arguments as :func:`simulate` would need; nothing is kept.

    The state is set up for at most about two hundred clients and scaled: in what the server keeps, an axis
    as long as they are many is one over all clients, and a matrix that is empty to begin with one over the
    pairs of a round. Sizes are of the models that a few clients, small and large, start from; times are those
    of their training, after a first time that records native steps. Under torchrun it is told for its
    processes.

    Raises:
        ValueError: no client has a training row.
    """
    engine = engine or EngineConfig()
    clients, device = federation.clients, resolve_device(engine.device)
    world, here = processes()
    if not len(clients.trainable):
        raise ValueError(f"federation {federation.name!r}: no client has a training row")
    sizes = [(task.mapped, _bytes(task.inputs) + _bytes(task.server_items)) for task in federation.tasks]
    return Forecast(
        clients=len(clients),
        trainable=len(clients.trainable),
        sampled=sample_size(clients, engine.participation),
        tested=min(len(clients.tested), engine.evaluate_clients or len(clients)),
        inputs=sum(size for mapped, size in sizes if not mapped),
        mapped=sum(size for mapped, size in sizes if mapped),
        measured=_measured(federation, algorithm, seed, engine, device),
        rounds=rounds,
        engine=engine,
        memory=free_memory(device),
        disk=free_disk(out or Path(tempfile.gettempdir())),
        scratch=free_disk(Path(tempfile.gettempdir())),
        threads=torch.get_num_threads() if device.type == "cpu" else 1,
        world=world,
        here=here,
    )


class _OfTask(NamedTuple):
    """Means over the clients of a task that were looked at."""

    parameters: list[int]
    model: int
    personal: float
    up: float
    down: float
    chunk: int
    row_seconds: float
    test_seconds: float


def _measured(
    federation: Federation, algorithm: Algorithm, seed: int, engine: EngineConfig, device: torch.device
) -> Measured:
    whole = federation.clients
    part = thinned(federation, _SET_UP)
    part = move(standardise(part) if engine.standardise else part, device)
    with one_torch_thread():
        state, setting_up = _set_up(algorithm, part, seed)
        server, of_all_pairs, of_a_pair = _server_bytes(
            state, algorithm.tables_of_clients, len(part.clients), len(whole)
        )
        kept_for = sum(
            _bytes(table[row]) for n in algorithm.per_client for table in [getattr(state, n)] for row in table
        )
        state = to_device(state, device)
        phases = algorithm.client_phases()
        if engine.precision == "bfloat16":
            phases = in_bfloat16(phases, device)
        sizes = ChunkSizes(engine.chunk, engine.memory_gib)
        steps: dict[str, str] = {}
        tasks: list[_OfTask] = []
        clients, rows = [], []
        for number in range(len(part.tasks)):
            probes = _probes(part, number)
            if not probes:
                continue
            own = whole.num_train[np.asarray(whole.of_task(number))]
            starts = [algorithm.broadcast(state, c) for c in probes]
            chunk = sizes.of(probes[-1], starts[-1], phases)
            for name, kind in _kinds_of_steps(probes, starts, phases, engine, chunk).items():
                steps[name] = kind if steps.get(name, "native") == "native" else steps[name]
            if device.type != "cpu":
                # A GPU takes about as long for many clients as for a few.
                times = -(-min(chunk, math.ceil(engine.participation * np.count_nonzero(own))) // len(probes))
                probes, starts = probes * times, starts * times
            chunks = cut_cohorts(probes, starts, phases, sizes)
            tasks.append(
                _of_task(algorithm, probes, starts, chunks, phases, seed, "native" in steps.values())
            )
            clients.append(np.count_nonzero(own))
            rows.append(own.sum())
    numbers = [n for task in tasks for n in task.parameters]

    def mean(values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=clients))

    return Measured(
        clients=len(part.clients),
        timed=len(numbers),
        model=max(task.model for task in tasks),
        parameters=(min(numbers), max(numbers)),
        setting_up=setting_up / len(part.clients),
        personal=mean(task.personal for task in tasks),
        kept_for=kept_for / len(part.clients),
        up=mean(task.up for task in tasks),
        down=mean(task.down for task in tasks),
        server=server,
        of_all_pairs=of_all_pairs,
        of_a_pair=of_a_pair,
        similarity=shown_in_reports(len(whole)) and algorithm.similarity(state) is not None,
        chunk=engine.chunk or max(task.chunk for task in tasks),
        steps=steps,
        train_seconds=mean(t.row_seconds * r / c for t, r, c in zip(tasks, rows, clients, strict=True)),
        test_seconds=mean(task.test_seconds for task in tasks),
    )


def _set_up(algorithm: Algorithm, federation: Federation, seed: int) -> tuple[State, int]:
    """The state, and the peak of what Python allocates for it; tensors are counted elsewhere."""
    # A first time, for what is imported and kept on first use.
    algorithm.setup(federation, torch_generator(seed, Purpose.INITIALISATION))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    state = algorithm.setup(federation, torch_generator(seed, Purpose.INITIALISATION))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return state, peak - before


def _of_task(
    algorithm: Algorithm,
    clients: Sequence[Client],
    starts: Sequence[ClientState],
    chunks: Sequence[Sequence[int]],
    phases: Sequence[Phase],
    seed: int,
    native: bool,
) -> _OfTask:
    device = next(iter(starts[0].values())).device
    steps, memory = NativeSteps() if native else None, ClientMemory() if device.type == "cpu" else None
    seconds, up = 0.0, 0
    for chunk in chunks:
        members, own = [clients[p] for p in chunk], [starts[p] for p in chunk]
        if steps is not None:
            steps.prepare(members, own, phases, 0)
        train_clients(members, own, phases, 0, seed, steps, memory)
        began = _clock(device)
        results = train_clients(members, own, phases, 0, seed, steps, memory)
        seconds += _clock(device) - began
        up += sum(_bytes(algorithm.upload(r.params, c)) for r, c in zip(results, members, strict=True))
    different = dict(zip(clients, starts, strict=True))
    tested = [(c, s) for c, s in different.items() if len(c.test_rows)]
    began = _clock(device)
    for client, start in tested:
        predictions(algorithm, start, client)
    test_seconds = _clock(device) - began
    kept = algorithm.personal
    personal = [_bytes({n: t for n, t in s.items() if part_of(n) in kept or "*" in kept}) for s in starts]
    sizes = list(map(_bytes, starts))
    return _OfTask(
        parameters=[sum(t.numel() for t in s.values()) for s in starts],
        model=max(sizes),
        personal=fmean(personal),
        up=up / len(clients),
        down=fmean(sizes) - fmean(personal),
        chunk=max(map(len, chunks)),
        row_seconds=seconds / sum(c.num_train for c in clients),
        test_seconds=test_seconds / max(1, len(tested)),
    )


def _probes(federation: Federation, number: int) -> list[Client]:
    """A few of a task's, from the smallest to the largest."""
    clients = federation.clients
    able = sorted(
        (i for i in clients.of_task(number) if clients.num_train[i]), key=clients.num_train.__getitem__
    )
    places = torch.linspace(0, len(able) - 1, min(_TIMED, len(able))).round().int().tolist()
    return [clients[able[place]] for place in places]


def _kinds_of_steps(
    clients: Sequence[Client],
    starts: Sequence[ClientState],
    phases: Sequence[Phase],
    engine: EngineConfig,
    chunk: int,
) -> dict[str, str]:
    """Pass -> ``"native"`` or why not; of several tasks the first that cannot tells why."""
    device = next(iter(starts[0].values())).device
    common = None
    if engine.native_steps == "off":
        common = "native_steps is off"
    elif engine.precision != "float32":
        common = f"precision is {engine.precision}"
    elif chosen("client_step", device) != "native":
        common = "there is no native code for this device or build"
    elif chunk > 1:
        common = "clients are stacked"
    kinds = {}
    for phase in {phase.name: phase for phase in phases}.values():
        reasons = (why_not_native(c, s, phase) for c, s in zip(clients, starts, strict=True))
        kinds[phase.name] = common or next((f"{reason}" for reason in reasons if reason), "native")
    return kinds


def _server_bytes(state: State, of_clients: Sequence[str], few: int, many: int) -> tuple[int, int, int]:
    """Bytes of what is kept neither by a client nor for each, scaled from few clients to many.

    Also how many of them grow with the square of the clients, and those of a pair of clients of a round.
    """
    total, of_all_pairs, of_a_pair = 0.0, 0.0, 0
    for field in fields(state):
        value = getattr(state, field.name)
        if field.name in of_clients:
            continue
        if isinstance(value, ParameterTable):
            held = sum(_bytes(value[row]) for row in value)
            total += held * (many / few if len(value) == few else 1)
            continue
        for tensor in [value] if isinstance(value, Tensor) else value.values():
            axes = tuple(tensor.shape).count(few)
            size = tensor.nbytes * (many / few) ** axes
            total += size
            of_all_pairs += size if axes > 1 else 0
            of_a_pair += tensor.element_size() if tensor.shape == (0, 0) else 0
    return int(total), int(of_all_pairs), of_a_pair


def _clock(device: torch.device) -> float:
    """Seconds: on a CPU of this thread's processor time, which other work here hardly changes."""
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _bytes(tensors: ClientState) -> int:
    return sum(t.nbytes for t in tensors.values())


def in_bytes(count: float) -> str:
    """Bytes for people, ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
