"""The processes of one run: how they find each other, report to each other, and notice that one is gone.

Every report goes to rank 0, and rank 0 tells all what came of it. So a rank waits for rank 0 alone, and rank
0 for each of the others: whoever is gone is known by number, and nobody waits for a rank that waits for it.

Reports are pickled, as the messages of ``torch.distributed`` are: the processes trust each other.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")

# What torchrun gives a process; the same that torch.distributed reads.
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A dead process is noticed at once. This is for one that hangs, and longer than any share of a round.
_PATIENCE = "MMFL_PATIENCE"
_MINUTES = 30.0


class RankError(RuntimeError):
    """The processes of a run cannot go on together; the message says which rank failed, and how.

    Attributes:
        lost: ranks that died or did not answer.
    """

    def __init__(self, message: str, lost: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.lost = tuple(lost)


class StoppedError(Exception):
    """Somebody asked this process to end."""


class _Report(NamedTuple):
    """What a rank has to say: its result, or what went wrong."""

    result: Any
    problem: str | None


class _Verdict(NamedTuple):
    """What rank 0 made of all reports: all results, or whose there are none and why."""

    results: list[Any]
    problems: dict[int, str]
    lost: list[int]


class Ranks:
    """The processes of one run, each of which goes through the same exchanges in the same order.

    Attributes:
        rank: number of this process.
        world: how many there are; one process alone exchanges nothing.
    """

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.world = world
        self._group = group
        self._between_gpus: Any = None
        self._stopped = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and shows what the run gives."""
        return self.rank == 0

    def exchange(self, work: Callable[[], Result]) -> list[Result]:
        """Do this rank's work, and return the results of all ranks in their order.

        Args:
            work: may fail; its result is plain data. It must not exchange anything itself.

        Raises:
            Exception: of ``work``, in the rank where it failed.
            RankError: in the other ranks; or a rank is gone or was asked to end.
        """
        if self.world == 1:
            return [work()]
        result, problem = None, None
        try:
            self.refuse_if_stopped()
            result = work()
        except Exception as error:
            problem = error
        report = _Report(result, _told(problem))
        verdict = self._collect(report) if self.first else self._deliver(report)
        if problem is not None and not isinstance(problem, (StoppedError, RankError)):
            raise problem
        if verdict.lost or verdict.problems:
            raise RankError(self._told(verdict), verdict.lost) from problem
        return verdict.results

    def everywhere(self, work: Callable[[], Result]) -> Result:
        """Do work that any rank may fail in, and then all do; return this rank's result."""
        kept: list[Result] = []
        self.exchange(lambda: kept.append(work()))
        return kept[0]

    def from_first(self, work: Callable[[], Result]) -> Result:
        """Do work in rank 0 alone, and return its result, which is plain data, in all."""
        results: list[Any] = self.exchange(lambda: work() if self.first else None)
        found: Result = results[0]
        return found

    def swap(self, own: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send each rank a tensor, and return those that the ranks have for this one, in their order.

        Args:
            own: one for each rank; one-dimensional, contiguous, of one dtype and device.
            sizes: how long that of each rank for this one is.

        Raises:
            RankError: a rank is gone.
        """
        device = own[0].device
        staged = device.type != "cpu" and self._between_gpus is None
        sent = [t.cpu() for t in own] if staged else own
        group = self._between_gpus if device.type != "cpu" and not staged else self._group
        every = [sent[r] if r == self.rank else sent[r].new_empty(size) for r, size in enumerate(sizes)]
        others = [r for r in range(self.world) if r != self.rank]
        steps = [dist.P2POp(dist.irecv, every[r], r, group) for r in others if sizes[r]]
        steps += [dist.P2POp(dist.isend, sent[r], r, group) for r in others if len(sent[r])]
        broken: RuntimeError | None = None
        try:
            for step in dist.batch_isend_irecv(steps) if steps else ():
                try:
                    step.wait()
                except RuntimeError as error:
                    broken = error
        except RuntimeError as error:
            broken = error
        if broken is not None:
            self._find_the_lost(broken)
        return [t.to(device) for t in every] if staged else every

    def own_gpu(self, device: torch.device) -> torch.device:
        """The GPU of this rank, if no certain one was asked for: they are dealt in the order of ranks."""
        if self.world == 1 or device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def connect_gpus(self, device: torch.device) -> None:
        """Let tensors go over NCCL where each rank has a GPU of its own; else they go by way of the CPU."""
        if self.world == 1:
            return
        own = _gpu_identity(device)
        every = self.exchange(lambda: own)
        if None not in every and len(set(every)) == self.world and dist.is_nccl_available():
            self._between_gpus = dist.new_group(backend="nccl", timeout=patience())

    def part(self) -> None:
        """Close the connections, which the other ranks notice."""
        for group in (self._between_gpus, self._group):
            if group is not None:
                dist.destroy_process_group(group)

    def refuse_if_stopped(self) -> None:
        """Raise if this process was asked to end; long work asks between its parts.

        Raises:
            StoppedError: it was.
        """
        if self._stopped.is_set():
            raise StoppedError

    @contextmanager
    def ending_in_order(self) -> Iterator[None]:
        """Take the first SIGTERM inside the block as a wish that the next exchange tells everybody.

        It is taken so after the block, too, if another rank is lost: a launcher then sends one to all that
        are left, and who lost it has yet to say so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._stopped.set()
            signal.signal(signal.SIGTERM, before)

        signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except RankError:
            raise
        except BaseException:
            signal.signal(signal.SIGTERM, before)
            raise
        else:
            signal.signal(signal.SIGTERM, before)

    def _collect(self, own: _Report) -> _Verdict:
        reports, lost = {0: own}, []
        for rank in range(1, self.world):
            try:
                reports[rank] = self._receive(rank)
            except RuntimeError:
                lost.append(rank)
        problems = {rank: r.problem for rank, r in reports.items() if r.problem is not None}
        sound = not lost and not problems
        verdict = _Verdict([r.result for r in reports.values()] if sound else [], problems, lost)
        for rank in reports.keys() - {0}:
            try:
                self._send(verdict, rank)
            except RuntimeError:
                verdict.lost.append(rank)
        return verdict

    def _deliver(self, own: _Report) -> _Verdict:
        try:
            self._send(own, 0)
            verdict: _Verdict = self._receive(0)
        except RuntimeError:
            return _Verdict([], {}, [0])
        return verdict

    def _send(self, content: Any, rank: int) -> None:
        data = torch.frombuffer(bytearray(pickle.dumps(content)), dtype=torch.uint8)
        dist.send(torch.tensor([len(data)]), rank, self._group)
        dist.send(data, rank, self._group)

    def _receive(self, rank: int) -> Any:
        size = torch.empty(1, dtype=torch.int64)
        dist.recv(size, rank, self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, rank, self._group)
        return pickle.loads(data.numpy().tobytes())

    def _find_the_lost(self, broken: RuntimeError) -> None:
        def fail() -> None:
            raise RankError(f"could not exchange tensors ({broken})")

        self.exchange(fail)

    def _told(self, verdict: _Verdict) -> str:
        if verdict.lost:
            ranks = ", ".join(map(str, sorted(verdict.lost)))
            several = "ranks" if len(verdict.lost) > 1 else "rank"
            return f"{several} {ranks} of {self.world} died, or no longer answered"
        # Who was asked to end was so because of another, if another has a reason of its own.
        rank = min(verdict.problems, key=lambda r: (verdict.problems[r] == _STOPPED, r))
        return f"rank {rank} of {self.world} {verdict.problems[rank]}"


_STOPPED = "was asked to end (SIGTERM)"
_joined: Ranks | None = None


def launched() -> bool:
    """Whether this process is one of several that torchrun, or a launcher like it, started."""
    return all(name in os.environ for name in _NEEDED) and int(os.environ["WORLD_SIZE"]) > 1


def processes() -> tuple[int, int]:
    """How many processes the launcher started, and of them on this machine; 1 and 1 for one alone."""
    if not launched():
        return 1, 1
    world = int(os.environ["WORLD_SIZE"])
    return world, int(os.environ.get("LOCAL_WORLD_SIZE", world))


def is_first() -> bool:
    """Whether this process is the one that writes and prints: rank 0, or one alone."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return not launched() or int(os.environ["RANK"]) == 0


def launcher() -> list[str]:
    """The words that start the command line as this process was started, ``["mmfl-fast"]`` for one alone."""
    if not launched():
        return ["mmfl-fast"]
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if nodes == "1" else ["--nnodes", nodes]
    return ["torchrun", *several, "--nproc-per-node", str(processes()[1]), "-m", "mmfl_fast"]


def patience() -> timedelta:
    """How long a process waits for one that does not answer: ``MMFL_PATIENCE`` minutes, 30 if it is not set.

    Raises:
        ValueError: it is not a positive number.
    """
    given = os.environ.get(_PATIENCE, "")
    try:
        minutes = float(given or _MINUTES)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise ValueError(f"{_PATIENCE} must be a positive number of minutes; got {given!r}")
    return timedelta(minutes=minutes)


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this run, connected while the block lasts; a block inside another has the same.

    A process that no launcher started is alone, unless ``torch.distributed`` is initialised already. It stays
    so after the block.

    Raises:
        ValueError: ``MMFL_PATIENCE`` is not a number of minutes.
    """
    global _joined
    if _joined is not None:
        yield _joined
        return
    if not launched() and not dist.is_initialized():
        yield Ranks()
        return
    if not dist.is_initialized():
        # For the rest of the process: a second one at the same address could meet what is left of the first.
        dist.init_process_group("gloo", timeout=timedelta(minutes=_MINUTES))
    # It ends with the block, and so tells the others, also where the process goes on.
    group = dist.new_group(backend="gloo", timeout=patience())
    ranks = _joined = Ranks(dist.get_rank(), dist.get_world_size(), group)
    try:
        with ranks.ending_in_order():
            yield ranks
    finally:
        _joined = None
        ranks.part()


def _gpu_identity(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    return str(torch.cuda.get_device_properties(device).uuid)


def _told(problem: Exception | None) -> str | None:
    if problem is None:
        return None
    if isinstance(problem, StoppedError):
        return _STOPPED
    if isinstance(problem, RankError):
        return str(problem)
    return f"failed with {type(problem).__name__}: {problem}"
