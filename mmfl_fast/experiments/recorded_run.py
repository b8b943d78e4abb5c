"""What a run directory says, read back."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mmfl_fast.experiments.scores import SCORES

# What an algorithm's state may hold about the clients; pictured where it is there.
_PAIRS = ("affinity", "consensus")
_PICTURED = (*_PAIRS, "clusters")
COUNTED = ("bytes_up", "bytes_down", "optimiser_steps", "samples_seen")
# Plain numbers of a round that are the engine's, or have a picture of their own.
_NOT_MEASURES = {"round", "clients", "train_loss", "adjusted_rand_index", *COUNTED, *(m.name for m in SCORES)}


class ReportError(ValueError):
    """A file of a run directory is missing or damaged; the message names it."""


@dataclass(frozen=True)
class RecordedRun:
    """What a run directory says.

    Attributes:
        path: the run directory.
        config: ``config.yaml``.
        clients: ``clients.json``: name, dataset, modalities, train and test rows of each of the K clients;
            ``present`` says of ``"train"`` and ``"test"`` which share of the rows has each modality.
        history: lines of ``metrics.jsonl``.
        result: ``result.json``; None before the last of the rounds asked for.
        state: ``affinity`` [K, K], ``clusters`` [K], ``consensus`` [K, K] of the newest checkpoint, where the
            algorithm has them.
        state_round: the round after which that checkpoint was written; None without one.
    """

    path: Path
    config: dict[str, Any]
    clients: list[dict[str, Any]]
    history: list[dict[str, Any]]
    result: dict[str, Any] | None
    state: dict[str, NDArray[Any]]
    state_round: int | None

    @property
    def progress(self) -> str:
        """``"N of M rounds"``."""
        return f"{len(self.history)} of {self.config['rounds']} rounds"

    @property
    def scores(self) -> dict[str, Any] | None:
        """The result, else the newest evaluation with its ``round``, else None."""
        return self.result or next((line for line in reversed(self.history) if "accuracy" in line), None)

    @property
    def measured(self) -> dict[str, Any] | None:
        """The result, and what the rounds cost, in the form that score tables take; None without a result.

        ``client_pass`` is the median over rounds of the seconds that a client's round took, also per data
        set with clients of its own; NaN in runs that did not measure it, as are scores that they did not
        compute. ``bytes_up``, ``bytes_down`` and ``steps_per_client`` are means over clients and rounds.
        """
        if self.result is None:
            return None
        timed = [line["seconds"] for line in self.history if "client_pass" in line["seconds"]]
        by_dataset = [seconds["client_pass_per_dataset"] for seconds in timed]
        absent = {metric.name: math.nan for metric in SCORES}
        per_dataset = {name: {**absent, **scores} for name, scores in self.result["per_dataset"].items()}
        for name in (n for n in self.datasets if n in per_dataset):
            own = [seconds[name] for seconds in by_dataset if name in seconds]
            per_dataset[name]["client_pass"] = _median(own)
        clients = sum(line["clients"] for line in self.history)
        return {
            **absent,
            **self.result,
            "per_dataset": per_dataset,
            "client_pass": _median([t["client_pass"] for t in timed]),
            "bytes_up": sum(line["bytes_up"] for line in self.history) / clients,
            "bytes_down": sum(line["bytes_down"] for line in self.history) / clients,
            "steps_per_client": sum(line["optimiser_steps"] for line in self.history) / clients,
        }

    @property
    def names(self) -> list[str]:
        """Client names."""
        return [c["name"] for c in self.clients]

    @property
    def datasets(self) -> list[str]:
        """Data set of each client."""
        return [c["dataset"] for c in self.clients]

    @property
    def modalities(self) -> list[str]:
        """Modalities of each client, as one label."""
        return [" + ".join(c["modalities"]) or "no modality" for c in self.clients]

    @property
    def groups(self) -> list[str]:
        """Data set and modalities of each client, as one label."""
        return [f"{dataset} ({held})" for dataset, held in zip(self.datasets, self.modalities, strict=True)]

    @property
    def measures(self) -> list[str]:
        """Names of the plain numbers that the algorithm tells of itself, in the order of appearance."""
        return list(
            dict.fromkeys(
                name
                for line in self.history
                for name, value in line.items()
                if isinstance(value, (int, float))
                and not isinstance(value, bool)
                and name not in _NOT_MEASURES
            )
        )

    def presence(self, part: str) -> list[dict[str, float]]:
        """Modality -> share of the rows of ``"train"`` or ``"test"`` that have it, of each client.

        Empty for a client without such rows, and for runs that did not record it.
        """
        return [c.get("present", {}).get(part, {}) for c in self.clients]

    def similarities(self) -> dict[int, NDArray[Any]]:
        """Round -> similarity ``[K, K]`` of the clients after it, for the rounds that kept one.

        Raises:
            ReportError: a file is damaged or of other clients; names it.
        """
        found: dict[int, NDArray[Any]] = {}
        if not self.clients:
            return found
        for file in sorted((self.path / "similarity").glob("round-*.safetensors")):
            number = int(file.stem.removeprefix("round-"))
            # A resumed run computes the rounds after its checkpoint again: until then they do not count.
            if number <= len(self.history):
                found[number] = _tensors(file, ("similarity",))["similarity"]
                if found[number].shape != (len(self.clients),) * 2:
                    got = list(found[number].shape)
                    raise ReportError(f"{file}: expected {len(self.clients)} clients; got {got}")
        return found


def read_run(run_dir: Path) -> RecordedRun:
    """Read a run directory, finished or not.

    Raises:
        ReportError: a file is missing or damaged; names it.
    """
    config_file, metrics_file = run_dir / "config.yaml", run_dir / "metrics.jsonl"
    clients_file, result_file = run_dir / "clients.json", run_dir / "result.json"
    config = _with_keys(_yaml(config_file), ("algorithm", "rounds", "seed"), config_file)
    clients = [
        _with_keys(client, ("name", "dataset", "modalities", "train", "test"), clients_file)
        for client in _json(_text(clients_file), clients_file)
    ]
    history = []
    for where, text in _lines(metrics_file):
        needed = ("round", "clients", "train_loss", "seconds", *COUNTED)
        line = _with_keys(_json(text, where), needed, where)
        if not clients:
            # Of a large population nobody is described, so no picture can show clusters.
            line.pop("clusters", None)
        clusters = line.get("clusters")
        if clusters is not None and len(clusters) != len(clients):
            told = f"clusters of {len(clusters)} clients, {clients_file} has {len(clients)}"
            raise ReportError(f"{where} is damaged: {told}")
        history.append(line)
    result = None
    if result_file.exists():
        keys = ("accuracy", "macro_f1", "per_dataset", "per_client", "rounds")
        result = _with_keys(_json(_text(result_file), result_file), keys, result_file)
        if len(result["per_client"]) != len(clients):
            got = len(result["per_client"])
            raise ReportError(f"{result_file} is damaged: {got} scores for {len(clients)} clients")
    # A run that was asked for more rounds later still has the result of the fewer ones.
    if result is not None and result["rounds"] != config["rounds"]:
        result = None
    state, state_round = _newest_state(run_dir / "checkpoints", len(clients)) if clients else ({}, None)
    return RecordedRun(run_dir, config, clients, history, result, state, state_round)


def _newest_state(folder: Path, clients: int) -> tuple[dict[str, NDArray[Any]], int | None]:
    checkpoints = sorted(folder.glob("round-*")) if folder.is_dir() else []
    if not checkpoints:
        return {}, None
    file = checkpoints[-1] / "state.safetensors"
    if not file.exists():
        raise ReportError(f"{file} is missing")
    state = _tensors(file, (*_PICTURED, "members"))
    members = state.pop("members", None)
    if members is not None:
        state.update({name: _among_all(state[name], members, clients) for name in _PAIRS if name in state})
    return state, int(checkpoints[-1].name.removeprefix("round-"))


def _among_all(matrix: NDArray[Any], members: NDArray[Any], count: int) -> NDArray[Any]:
    """A matrix over the clients of a round as one over all clients; NaN for the others."""
    full = np.full((count, count), np.nan)
    if len(matrix):
        full[np.ix_(members, members)] = matrix
    return full


def _tensors(file: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the names that the file has."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tensors.get_tensor(name) for name in names if name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ReportError(f"{file} is damaged: {error}") from error


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReportError(f"{path} is missing: a run directory has one") from None
    except UnicodeDecodeError as error:
        raise ReportError(f"{path} is damaged: {error}") from error


def _lines(path: Path) -> list[tuple[str, str]]:
    """Whole lines with their place; a kill may leave half a line at the end, which does not count."""
    whole = _text(path).split("\n")[:-1]
    return [(f"{path}, line {number},", line) for number, line in enumerate(whole, start=1)]


def _json(text: str, where: Path | str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{where} is damaged: {error}") from error


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is damaged: {error}") from error


def _with_keys(content: Any, keys: Sequence[str], where: Path | str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ReportError(f"{where} is damaged: expected keys and values; got {type(content).__name__}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ReportError(f"{where} is damaged: it has no {', '.join(missing)}")
    return content
