"""Data sets, modality masks, partitions, downloads, and federations from arrays."""

from mmfl_fast.data.arrays import from_arrays
from mmfl_fast.data.completion import complete
from mmfl_fast.data.federation import Client, Federation, Task
from mmfl_fast.data.merge import merge
from mmfl_fast.data.missing import with_missing
from mmfl_fast.data.npz import load_npz
from mmfl_fast.data.pairs.from_pairs import from_pairs
from mmfl_fast.data.pairs.pair_generator import PairGenerator
from mmfl_fast.data.partition import dirichlet
from mmfl_fast.data.presence import presence
from mmfl_fast.data.registry import available, check, describe, fetch, load
from mmfl_fast.data.server_items import with_server_items
from mmfl_fast.data.shards import shards
from mmfl_fast.data.validation import validation_part

__all__ = [
    "Client",
    "Federation",
    "PairGenerator",
    "Task",
    "available",
    "check",
    "complete",
    "describe",
    "dirichlet",
    "fetch",
    "from_arrays",
    "from_pairs",
    "load",
    "load_npz",
    "merge",
    "presence",
    "shards",
    "validation_part",
    "with_missing",
    "with_server_items",
]
