"""How well the clusters that a server found are the modalities that it does not know."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.metrics import adjusted_rand_score


def agreement(clusters: Sequence[int], modalities: Sequence[str]) -> float | None:
    """Adjusted Rand index (Hubert and Arabie, 1985): 1 for equal partitions, 0 on average by chance.

    Args:
        clusters: ``[K]``, -1 for a client that never took part; those do not count.
        modalities: ``[K]``, the truth.

    Returns:
        The index; None if no client took part.
    """
    pairs = [(c, m) for c, m in zip(clusters, modalities, strict=True) if c >= 0]
    if not pairs:
        return None
    found, truth = zip(*pairs, strict=True)
    return float(adjusted_rand_score(truth, found))
