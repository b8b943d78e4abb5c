from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.data import Client, Federation
from mmfl_fast.federation import Algorithm, ClientState, State, Uploads
from mmfl_fast.federation.client_workers import one_torch_thread
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.streams import Purpose, torch_generator


@dataclass(frozen=True)
class Trial:
    """An algorithm by hand, step by step, as the engine runs it."""

    algorithm: Algorithm
    state: Any
    federation: Federation

    def starts(self) -> list[ClientState]:
        return [self.algorithm.broadcast(self.state, c) for c in self.federation.clients]

    def train(self, clients: Sequence[Client] | None = None, number: int = 0) -> list[ClientState]:
        """What each client, all by default, makes of its start in a round."""
        phases = self.algorithm.client_phases()
        clients = self.federation.clients if clients is None else clients
        starts = [self.algorithm.broadcast(self.state, c) for c in clients]
        with one_torch_thread():
            return [
                train_clients([c], [start], phases, number, 0)[0].params
                for c, start in zip(clients, starts, strict=True)
            ]

    def aggregate(self, params: Sequence[ClientState], clients: Sequence[Client] | None = None) -> State:
        """The server's step alone; personal parts stay as they were."""
        clients = self.federation.clients if clients is None else clients
        with one_torch_thread():
            rows = [self.algorithm.upload(p, c) for p, c in zip(params, clients, strict=True)]
        sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
        return self.algorithm.aggregate(self.state, Uploads(clients, rows), sizes / sizes.sum())

    def received(self, state: State, client: Client) -> ClientState:
        """What a client would start from."""
        return self.algorithm.broadcast(state, client)


@pytest.fixture(scope="session")
def digits() -> Federation:
    """Three modalities of one label: two pictures and a vector; three clients of 25, 20 and 11 rows."""
    rng = np.random.default_rng(0)
    labels = np.arange(56) % 3
    pictures = {
        name: rng.normal(size=(56, 8, 8)).astype(np.float32) + labels[:, None, None]
        for name in ("image", "sign")
    }
    vectors = rng.normal(size=(56, 4)).astype(np.float32) - labels[:, None]
    clients = np.repeat(["a", "b", "c"], [25, 20, 11])
    split = np.where(np.arange(56) % 5 == 4, "test", "train")
    return data.from_arrays({**pictures, "sound": vectors}, labels, clients, split, name="digits")


@pytest.fixture(scope="session")
def pairs() -> Federation:
    """Image tokens [3, 6] and a text vector [5] of three classes, four clients."""
    rng = np.random.default_rng(0)
    labels = np.arange(72) % 3
    images = rng.normal(size=(72, 3, 6)).astype(np.float32) + labels[:, None, None]
    texts = rng.normal(size=(72, 5)).astype(np.float32) - labels[:, None]
    split = np.where(np.arange(72) % 4 == 3, "test", "train")
    modalities = {"image": images, "text": texts}
    return data.from_arrays(modalities, labels, np.arange(72) // 18, split, name="pairs")


@pytest.fixture
def trial(mixed_federation: Federation, small: Callable[..., dict[str, Any]]) -> Callable[..., Trial]:
    """``trial("pcgrad", momentum=0.0)``: a small model on two tasks, before the first round."""

    def build(method: str, federation: Federation = mixed_federation, **options: Any) -> Trial:
        kind = mf.algorithms.get(method)
        algorithm = kind(kind.Config(**small(method, **options)))
        state = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))
        return Trial(algorithm, state, federation)

    return build
