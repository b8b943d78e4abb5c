"""The folder of one run: resolved config, metrics line by line, checkpoints, result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import State
from mmfl_fast.federation.checkpoints import AnyState, read_checkpoint, write_checkpoint

# A run may be continued for longer and by another command line; everything else fixes its numbers.
_MAY_CHANGE = {"rounds", "command"}


class RunDirectoryError(RuntimeError):
    """The folder holds something that this run must not touch; the message says what to do."""


class RunDirectory:
    """Files of one run.

    Args:
        path: folder; made if absent.
        config: everything that fixes the run's numbers, as plain data.
        resume: continue from the newest checkpoint if there is one.

    Raises:
        RunDirectoryError: there is a run already and ``resume`` is off, or its config differs.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self._metrics = path / "metrics.jsonl"
        self._config = path / "config.yaml"
        path.mkdir(parents=True, exist_ok=True)
        if self._config.exists():
            if not resume:
                raise RunDirectoryError(
                    f"{path} already holds a run: continue it with resume (--resume) or choose another folder"
                )
            self._refuse_other(config)
        write_atomically(self._config, yaml.safe_dump(dict(config), sort_keys=False))

    def _refuse_other(self, config: Mapping[str, Any]) -> None:
        before = yaml.safe_load(self._config.read_text()) or {}
        differing = sorted(
            key
            for key in before.keys() | config.keys()
            if key not in _MAY_CHANGE and before.get(key) != config.get(key)
        )
        if differing:
            told = "; ".join(f"{k}: {before.get(k)!r} there, {config.get(k)!r} now" for k in differing)
            raise RunDirectoryError(f"{self.path} holds a run with another config ({told})")

    def describe_clients(self, clients: Sequence[Client]) -> None:
        """Write ``clients.json``: who took part, for the report."""
        described = [
            {
                "name": c.name,
                "dataset": c.task.name,
                "modalities": list(c.modalities),
                "train": c.num_train,
                "test": len(c.test_rows),
            }
            for c in clients
        ]
        write_atomically(self.path / "clients.json", json.dumps(described, indent=1))

    def restore(self, template: AnyState) -> tuple[AnyState, int, list[dict[str, Any]]]:
        """Return state, rounds done and metrics so far; those of ``template`` and none on a fresh run.

        Metrics written after the checkpoint are cut off: those rounds are computed again.
        """
        found = read_checkpoint(self.path / "checkpoints", template)
        if found is None:
            self._metrics.write_text("")
            return template, 0, []
        state, meta = found
        with self._metrics.open("r+") as file:
            file.truncate(meta["metrics_bytes"])
        lines = [json.loads(line) for line in self._metrics.read_text().splitlines()]
        return state, meta["rounds_done"], lines

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one JSON line."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def checkpoint(self, rounds_done: int, state: State) -> None:
        """Keep the state so that a resumed run continues from here."""
        meta = {"metrics_bytes": self._metrics.stat().st_size}
        write_checkpoint(self.path / "checkpoints", rounds_done, state, meta)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``; its presence says that the run is complete."""
        write_atomically(self.path / "result.json", json.dumps(result, indent=1))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is either whole or as it was before; text is UTF-8."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
