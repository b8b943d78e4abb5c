"""The folder of one run: resolved config, metrics line by line, checkpoints, result."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from mmfl_fast.data import Client, presence
from mmfl_fast.federation.algorithm import State
from mmfl_fast.federation.checkpoints import (
    AnyState,
    CheckpointError,
    keep_newest,
    read_checkpoint,
    write_checkpoint,
)

# Clients beyond which a report cannot show each of them.
_MOST_DESCRIBED = 10_000
# A run may be continued for longer and by another command line; everything else fixes its numbers.
_MAY_CHANGE = {"rounds", "command"}


def shown_in_reports(clients: int) -> bool:
    """Whether reports show each of so many clients."""
    return clients <= _MOST_DESCRIBED


class RunDirectoryError(RuntimeError):
    """The folder holds something that this run must not touch; the message says what to do."""


class RunDirectory:
    """Files of one run, which one process at a time may work on.

    Nothing that a run has written changes before :meth:`restore` and :meth:`describe`.

    Args:
        path: folder; made if absent.
        config: everything that fixes the run's numbers, as plain data.
        resume: continue from the newest checkpoint if there is one.

    Raises:
        RunDirectoryError: there is a run already and ``resume`` is off, its config differs or cannot be
            read, another process is working on it, or ``path`` is a file.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        # As the file will give it back, where a tuple is a list.
        self._described = yaml.safe_load(yaml.safe_dump(dict(config), sort_keys=False))
        self._metrics = path / "metrics.jsonl"
        self._config = path / "config.yaml"
        self._checkpoints = path / "checkpoints"
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(f"{path} is not a folder: a run is kept in one")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            self._refuse_other(resume)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes work on the folder."""
        os.close(self._lock)

    def _refuse_other(self, resume: bool) -> None:
        if not self._config.exists() and not self._checkpoints.exists():
            return
        if not resume:
            raise RunDirectoryError(
                f"{self.path} already holds a run: "
                "continue it with resume (--resume) or choose another folder"
            )
        try:
            before = _flat(yaml.safe_load(self._config.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
            told = " ".join(str(error).split())
            raise RunDirectoryError(
                f"{self._config} cannot be read, so it is unknown what run this is ({told})"
            ) from error
        now = _flat(self._described)
        differing = sorted(
            key
            for key in before.keys() | now.keys()
            if key not in _MAY_CHANGE and before.get(key) != now.get(key)
        )
        if differing:
            told = "; ".join(f"{k}: {before.get(k)!r} there, {now.get(k)!r} now" for k in differing)
            raise RunDirectoryError(f"{self.path} holds a run with another config ({told})")

    def describe(self, clients: Sequence[Client]) -> None:
        """Write ``config.yaml`` and, for the report, ``clients.json``: who took part; nobody of very many."""
        write_atomically(self._config, yaml.safe_dump(self._described, sort_keys=False))
        described = [
            {
                "name": c.name,
                "dataset": c.task.name,
                "modalities": list(c.modalities),
                "present": {part: presence(c, part) for part in ("train", "test")},
                "train": c.num_train,
                "test": len(c.test_rows),
            }
            for c in (clients if shown_in_reports(len(clients)) else ())
        ]
        write_atomically(self.path / "clients.json", json.dumps(described, indent=1))

    def restore(self, template: AnyState) -> tuple[AnyState, int, list[dict[str, Any]]]:
        """Return state, rounds done and metrics so far; those of ``template`` and none on a fresh run.

        Metrics written after the checkpoint are cut off: those rounds are computed again.

        Raises:
            CheckpointError: the newest checkpoint or the metrics of its rounds are damaged or gone.
        """
        found = read_checkpoint(self._checkpoints, template)
        if found is None:
            self._metrics.write_text("")
            return template, 0, []
        state, meta = found
        done = meta["rounds_done"]
        try:
            whole = self._metrics.read_bytes()[: meta["metrics_bytes"]]
            lines = [json.loads(line) for line in whole.splitlines()]
            rounds = [line["round"] for line in lines]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self._metrics} cannot be read ({error!r})") from error
        if rounds != list(range(1, done + 1)):
            raise CheckpointError(f"{self._metrics} does not hold rounds 1 to {done} of the checkpoint")
        os.truncate(self._metrics, len(whole))
        return state, done, lines

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one JSON line."""
        with _naming(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def keep_similarity(self, number: int, similarity: Tensor) -> None:
        """Write ``similarity/round-<number>.safetensors``: float16 ``[K, K]``, enough for a picture."""
        folder = self.path / "similarity"
        folder.mkdir(exist_ok=True)
        content = save({"similarity": similarity.detach().to("cpu", torch.float16).contiguous()})
        write_atomically(folder / f"round-{number:06d}.safetensors", content)

    def metrics_size(self) -> int:
        """Bytes of the metrics so far."""
        return self._metrics.stat().st_size

    def checkpoint(self, rounds_done: int, state: State, metrics_size: int | None = None) -> None:
        """Keep the state so that a resumed run continues from here.

        Args:
            rounds_done: rounds behind it.
            state: after them.
            metrics_size: bytes that their metrics take; None for all that there are.
        """
        meta = {"metrics_bytes": self.metrics_size() if metrics_size is None else metrics_size}
        write_checkpoint(self._checkpoints, rounds_done, state, meta)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``; its presence says that the run is complete."""
        if not shown_in_reports(len(result["per_client"])):
            result = {**result, "per_client": []}
        write_atomically(self.path / "result.json", json.dumps(result, indent=1))
        # One is enough to go on for longer; a comparison has many runs, each with every client's model.
        keep_newest(self._checkpoints, 1)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is either whole or as it was before; text is UTF-8."""
    partial = path.with_name(f".{path.name}.partial")
    with _naming(path):
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors of writing: a full disk does not tell what it could not hold."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _locked(folder: Path) -> int:
    """Descriptor of the folder's lock file; the lock ends when it is closed or the process dies."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunDirectoryError(f"another process is working on {folder}") from None
    return descriptor


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping) and value
        flat.update(_flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value})
    return flat
