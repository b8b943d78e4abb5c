"""How far clusters of clients agree with the modalities they hold, which the server does not know."""

from __future__ import annotations

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from mmfl_fast.data import Federation


def modality_numbers(federation: Federation) -> Tensor:
    """One number per set of modalities held, whatever the task; int64 ``[K]``."""
    kinds, of_client = federation.clients.kinds
    held = [frozenset(kind.modalities) for kind in kinds]
    numbers = {modalities: number for number, modalities in enumerate(dict.fromkeys(held))}
    return torch.tensor([numbers[modalities] for modalities in held])[of_client]


def adjusted_rand_index(clusters: Tensor, modalities: Tensor) -> float:
    """Agreement of two groupings (Hubert and Arabie 1985): 1 for the same, about 0 for a random one.

    Args:
        clusters: int64 ``[K]``; clients of cluster -1, not drawn so far, are left out.
        modalities: int64 ``[K]``, of :func:`modality_numbers`.
    """
    known = clusters >= 0
    return float(adjusted_rand_score(modalities[known].numpy(), clusters[known].numpy()))
