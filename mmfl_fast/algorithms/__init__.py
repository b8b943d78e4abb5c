"""One file per system. ``get("m3fed")`` finds an algorithm by the name users type."""

from __future__ import annotations

import difflib
from importlib import import_module

from mmfl_fast.federation import Algorithm

_PLACES = {
    "local": ("local", "Local"),
    "fedavg": ("fedavg", "FedAvg"),
    "cross-fedavg": ("cross_fedavg", "CrossFedAvg"),
    "m3fed": ("m3fed", "M3Fed"),
    "pcgrad": ("pcgrad", "PCGrad"),
    "mat-fl": ("mat_fl", "MaTFL"),
    "fedmsplit": ("fedmsplit", "FedMSplit"),
    "meta-har": ("meta_har", "MetaHAR"),
    "per-fedavg": ("per_fedavg", "PerFedAvg"),
}


def names() -> tuple[str, ...]:
    """Names of all algorithms."""
    return tuple(_PLACES)


def get(name: str) -> type[Algorithm]:
    """Return the class of an algorithm.

    Raises:
        ValueError: unknown name; tells the nearest one.
    """
    if name not in _PLACES:
        near = difflib.get_close_matches(name, _PLACES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown algorithm {name!r}{hint} Known: {', '.join(_PLACES)}")
    module, attribute = _PLACES[name]
    found: type[Algorithm] = getattr(import_module(f"mmfl_fast.algorithms.{module}"), attribute)
    return found
