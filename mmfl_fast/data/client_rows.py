"""Which rows of a task each of its clients holds, in a few arrays whatever the number of clients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ClientRows:
    """Rows and modalities of K clients.

    Args:
        owner: int64 ``[N]`` in ``[0, K)``, who holds a row.
        is_train: bool ``[N]``; the other rows are test rows.
        present: bool ``[N, M]``.
        count: K; a client may hold no row.
    """

    def __init__(self, owner: Tensor, is_train: Tensor, present: Tensor, count: int) -> None:
        key = 2 * owner.numpy() + ~is_train.numpy()
        self._order = torch.from_numpy(np.argsort(key, kind="stable"))
        bounds = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=2 * count))])
        self._first, self._middle, self._last = bounds[:-1:2], bounds[1::2], bounds[2::2]
        self._held = _held(owner.numpy(), is_train.numpy(), present.cpu().numpy(), self.num_train)

    @property
    def num_train(self) -> NDArray[np.int64]:
        """Training rows of each client, ``[K]``."""
        counts: NDArray[np.int64] = self._middle - self._first
        return counts

    @property
    def num_test(self) -> NDArray[np.int64]:
        """Test rows of each client, ``[K]``."""
        counts: NDArray[np.int64] = self._last - self._middle
        return counts

    def train(self, client: int) -> Tensor:
        """Row numbers of a client's training rows, ascending."""
        return self._order[self._first[client] : self._middle[client]]

    def test(self, client: int) -> Tensor:
        """Row numbers of a client's test rows, ascending."""
        return self._order[self._middle[client] : self._last[client]]

    @property
    def held(self) -> NDArray[np.bool_]:
        """Modalities of each client's training rows (test rows, if it has no others), ``[K, M]``."""
        return self._held


def _held(
    owner: NDArray[np.int64],
    is_train: NDArray[np.bool_],
    present: NDArray[np.bool_],
    num_train: NDArray[np.int64],
) -> NDArray[np.bool_]:
    counts = is_train | (num_train == 0)[owner]
    held = np.zeros((len(num_train), present.shape[1]), dtype=np.bool_)
    for column in range(present.shape[1]):
        held[owner[counts & present[:, column]], column] = True
    return held
