"""The engine: cohorts, sampling, rounds, evaluation, checkpoints. It knows no algorithm by name."""

from mmfl_fast.federation.algorithm import (
    Algorithm,
    AlgorithmConfig,
    Batch,
    ClientState,
    Context,
    Inputs,
    Phase,
    State,
    Uploads,
    part_of,
)
from mmfl_fast.federation.checkpoints import CheckpointError
from mmfl_fast.federation.config import EngineConfig
from mmfl_fast.federation.optimisers import Adam, Sgd
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.ranks import RankError
from mmfl_fast.federation.run_directory import RunDirectoryError
from mmfl_fast.federation.simulation import DivergedError, RunResult, simulate
from mmfl_fast.federation.streams import Purpose, normal_rows, stream

__all__ = [
    "Adam",
    "Algorithm",
    "AlgorithmConfig",
    "Batch",
    "CheckpointError",
    "ClientState",
    "Context",
    "DivergedError",
    "EngineConfig",
    "Inputs",
    "ParameterTable",
    "Phase",
    "Purpose",
    "RankError",
    "RunDirectoryError",
    "RunResult",
    "Sgd",
    "State",
    "Uploads",
    "normal_rows",
    "part_of",
    "simulate",
    "stream",
]
