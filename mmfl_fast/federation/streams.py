"""Random streams: one seed, one independent Philox stream per purpose, round and client."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a stream is drawn for. The numbers are part of a run's identity: never renumber."""

    INITIALISATION = 0
    SAMPLING = 1
    BATCHES = 2
    SERVER = 3
    NOISE = 4
    EVALUATION = 5


def stream(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """Return the stream of ``(seed, purpose, *indices)``; the same arguments give the same numbers."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(purpose), *indices))
    return np.random.Generator(np.random.Philox(sequence))


def normal_rows(rows: int, width: int, *indices: int) -> torch.Tensor:
    """Standard normal numbers ``[rows, width]``, float64, that are the same for all seeds and clients.

    A row's depend on its place and on ``indices`` alone, not on how many rows there are.
    """
    # NumPy's, because torch.func refuses to draw for a stack of clients.
    return torch.from_numpy(stream(0, Purpose.NOISE, *indices).standard_normal((rows, width)))


def torch_generator(seed: int, purpose: Purpose, *indices: int) -> torch.Generator:
    """Return a CPU ``torch.Generator`` seeded from the stream of the same arguments."""
    generator = torch.Generator()
    generator.manual_seed(int(stream(seed, purpose, *indices).integers(2**62)))
    return generator
