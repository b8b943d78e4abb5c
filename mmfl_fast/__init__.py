"""mmfl_fast: the fast path for multimodal federated learning.

``mf.ops`` are the kernels' public face, ``mf.data`` builds federations, ``mf.run`` trains an algorithm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmfl_fast import nn, ops
from mmfl_fast.kernels.backend import BackendStatus, backends, use_backend

if TYPE_CHECKING:
    from mmfl_fast import algorithms, data, federation
    from mmfl_fast.experiments.run import run

__version__ = "0.1.0"

__all__ = [
    "BackendStatus",
    "__version__",
    "algorithms",
    "backends",
    "data",
    "federation",
    "nn",
    "ops",
    "run",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    # The engine stands on libraries that take as long to import as torch; who calls ops alone does not wait.
    if name in ("algorithms", "data", "federation"):
        return importlib.import_module(f"mmfl_fast.{name}")
    if name == "run":
        return importlib.import_module("mmfl_fast.experiments.run").run
    raise AttributeError(f"module 'mmfl_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
