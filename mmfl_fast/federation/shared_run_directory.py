"""A run directory that several ranks share: rank 0 writes, and what goes wrong there stops all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mmfl_fast.data import Client
from mmfl_fast.federation.agreement import state_of_first
from mmfl_fast.federation.algorithm import State
from mmfl_fast.federation.checkpoints import AnyState, note_checkpoint, tables
from mmfl_fast.federation.ranks import RankError, Ranks
from mmfl_fast.federation.run_directory import RunDirectory


class SharedRunDirectory:
    """As :class:`~mmfl_fast.federation.run_directory.RunDirectory`, called in all ranks.

    While it is a context, :meth:`whole` says how far the run is. If a rank is lost inside, rank 0 keeps a
    checkpoint of that, unless rows on disk have been written over since, and the error says how to go on.
    """

    def __init__(self, ranks: Ranks, path: Path, config: Mapping[str, Any], resume: bool) -> None:
        self._ranks = ranks
        self._path = path
        self._command = config.get("command")
        self._own: RunDirectory | None = None
        self._whole: tuple[int, int, State] | None = None

        def open_it() -> None:
            self._own = RunDirectory(path, config, resume)

        ranks.from_first(open_it)

    def __enter__(self) -> SharedRunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, RankError):
                kept = self._rescued()
                raise RankError(f"{error}; {kept}", error.lost) from error
        finally:
            if self._own is not None:
                self._own.close()

    def restore(self, template: AnyState) -> tuple[AnyState, int, list[dict[str, Any]]]:
        """Rank 0's state, on the CPU, in all ranks; rounds done and metrics so far."""
        state = template

        def read() -> tuple[int, list[dict[str, Any]]]:
            nonlocal state
            assert self._own is not None
            state, done, lines = self._own.restore(template)
            return done, lines

        done, lines = self._ranks.from_first(read)
        return state_of_first(self._ranks, state), done, lines

    def whole(self, rounds_done: int, state: State) -> None:
        """So many rounds are behind the run, and this is the state that the next one starts from."""
        if self._own is not None:
            self._whole = rounds_done, self._own.metrics_size(), state

    def describe(self, clients: Sequence[Client]) -> None:
        """Write what fixes the run, and who takes part."""
        self._write(lambda own: own.describe(clients))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one JSON line."""
        self._write(lambda own: own.append_metrics(line))

    def keep_similarity(self, number: int, similarity: Tensor) -> None:
        """Write the similarity of a round."""
        self._write(lambda own: own.keep_similarity(number, similarity))

    def checkpoint(self, rounds_done: int, state: State) -> None:
        """Keep the state so that a resumed run, of any number of ranks, continues from here."""
        self._write(lambda own: own.checkpoint(rounds_done, state))
        if self._own is None:
            note_checkpoint(state)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result."""
        self._write(lambda own: own.finish(result))

    def _write(self, how: Callable[[RunDirectory], None]) -> None:
        def work() -> None:
            if self._own is not None:
                how(self._own)

        self._ranks.from_first(work)

    def _rescued(self) -> str:
        """Keep what is whole, and say how to go on from it."""
        command = "the same with resume" if self._command is None else f"`{self._resume_command()}`"
        newest = f"go on from the newest checkpoint in {self._path}: {command}"
        if self._own is None:
            return newest
        if self._whole is None or not self._whole[0]:
            return f"no round was complete; start again: {command}"
        rounds_done, metrics_size, state = self._whole
        if not all(table.newest for table in tables(state)):
            return newest
        self._own.checkpoint(rounds_done, state, metrics_size)
        until = f"{self._path} has the run up to round {rounds_done}"
        return f"{until}; go on from there, with any number of processes: {command}"

    def _resume_command(self) -> str:
        given = shlex.split(str(self._command))
        out = [] if any(word.split("=")[0] == "--out" for word in given) else ["--out", str(self._path)]
        return shlex.join([*given, *out, "--resume"])
