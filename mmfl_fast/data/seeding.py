"""Random streams of the data wing: one per purpose, so that no draw depends on another."""

from __future__ import annotations

import hashlib

import numpy as np

from mmfl_fast.data.arguments import require_integer


def stream(seed: int, *purpose: str) -> np.random.Generator:
    """Return a Philox generator that depends on ``seed`` and the words of ``purpose`` alone.

    The words are hashed into the spawn key of a ``SeedSequence``: streams of different purposes (or of the
    same purpose for different tasks) are independent, and none depends on the order of calls.

    Raises:
        TypeError, ValueError: ``seed`` is not an integer >= 0.
    """
    digest = hashlib.sha256("\0".join(purpose).encode()).digest()
    key = np.frombuffer(digest, dtype="<u4").tolist()
    sequence = np.random.SeedSequence(require_integer("seed", seed, minimum=0), spawn_key=key)
    return np.random.Generator(np.random.Philox(sequence))
