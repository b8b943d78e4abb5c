"""Rows of the tables that reports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmfl_fast.experiments.recorded_run import COUNTED, RecordedRun


def data_rows(run: RecordedRun) -> list[dict[str, Any]]:
    """Clients and rows per data set and set of modalities, then their sum."""
    members: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for client in run.clients:
        members.setdefault((client["dataset"], " + ".join(client["modalities"]) or "none"), []).append(client)
    rows = [_data_row(dataset, modality, clients) for (dataset, modality), clients in members.items()]
    return [*rows, _data_row("all", "", run.clients)] if len(rows) > 1 else rows


def cost(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return what was spent, as mean per round and sum."""
    if not history:
        return {}
    spent = {
        "client_seconds": [line["seconds"]["clients"] for line in history],
        "server_seconds": [line["seconds"]["server"] for line in history],
        **{name: [line[name] for line in history] for name in COUNTED},
    }
    return {name: (sum(values) / len(history), sum(values)) for name, values in spent.items()}


def cost_per_client(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what one client and round took, as mean over all of them."""
    clients = sum(line["clients"] for line in history)
    return {name: sum(line[name] for line in history) / clients for name in COUNTED} if clients else {}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"a": {"b": 1}}`` into ``{"a.b": 1}``."""
    joined: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping) and value
        joined.update(flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value})
    return joined


def _data_row(dataset: str, modality: str, clients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    train = [c["train"] for c in clients]
    return {
        "dataset": dataset,
        "modality": modality,
        "clients": len(clients),
        "train": sum(train),
        "test": sum(c["test"] for c in clients),
        "least": min(train, default=0),
        "most": max(train, default=0),
    }
