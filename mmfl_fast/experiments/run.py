"""``mmfl_fast.run``: one algorithm on one federation."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from mmfl_fast import algorithms
from mmfl_fast.data import Federation
from mmfl_fast.federation import Algorithm, EngineConfig, RunResult, simulate
from mmfl_fast.federation.config import split_options


def run(
    federation: Federation,
    algorithm: str | type[Algorithm],
    *,
    rounds: int = 50,
    seed: int = 0,
    out: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool | None = None,
    described: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train and evaluate.

    Args:
        federation: from ``mf.data``.
        algorithm: a name (``mf.algorithms.names()``) or an ``Algorithm`` class of your own.
        rounds: communication rounds, at least 1.
        seed: one integer that fixes everything.
        out: folder for config, metrics, checkpoints; None keeps nothing.
        config: options of the algorithm's ``Config`` and of ``EngineConfig``, in one mapping.
        resume: continue the run in ``out`` from its newest checkpoint, to the same bits.
        progress: show a bar; None shows it on a terminal.
        described: further plain data to keep in ``config.yaml``, such as where the federation came from.

    Returns:
        Final scores, history and state.

    Raises:
        ValueError: unknown algorithm or option (with the nearest valid name), a value that does not fit,
            or ``resume`` without ``out``.
        RunDirectoryError, CheckpointError: ``out`` holds something else, or is in use, or is damaged.
        TypeError: ``federation``, ``algorithm`` or ``config`` is something else.
        DivergedError: training produced non-finite parameters.
        RankError: of several processes that share the run, see
            :func:`~mmfl_fast.federation.simulation.simulate`, another one died or failed.
    """
    if not isinstance(federation, Federation):
        raise TypeError(f"federation must be a Federation (see mf.data); got {type(federation).__name__}")
    if isinstance(algorithm, str):
        name, kind = algorithm, algorithms.get(algorithm)
    elif isinstance(algorithm, type) and issubclass(algorithm, Algorithm):
        name, kind = algorithm.__name__, algorithm
    else:
        raise TypeError(f"algorithm must be a name or a subclass of Algorithm; got {algorithm!r}")
    # NumPy's integers are integers.
    if isinstance(rounds, bool) or not isinstance(rounds, Integral) or rounds < 1:
        raise ValueError(f"rounds must be an integer of at least 1; got {rounds!r}")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer; got {seed!r}")
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping of options; got {config!r}")
    if resume and out is None:
        raise ValueError("resume needs out, the folder of the run to continue")
    engine, own = split_options(config or {}, EngineConfig, kind.Config)
    resolved = {**engine.model_dump(by_alias=True), **own.model_dump(by_alias=True)}
    return simulate(
        federation,
        kind(own),
        rounds=int(rounds),
        seed=int(seed),
        engine=engine,
        out=None if out is None else Path(out),
        described={"algorithm": name, "federation": federation.name, **(described or {}), "config": resolved},
        resume=resume,
        progress=progress,
        label=name,
    )
