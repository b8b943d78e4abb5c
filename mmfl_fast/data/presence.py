"""How much of each modality a client has."""

from __future__ import annotations

from mmfl_fast.data.arguments import require_choice
from mmfl_fast.data.federation import Client


def presence(client: Client, part: str = "train") -> dict[str, float]:
    """Return modality -> share of the client's rows that have it, for all modalities of its task.

    Args:
        client: of any federation.
        part: ``"train"`` or ``"test"``, which rows.

    Returns:
        Shares in [0, 1], in the task's order; empty for a client without such rows.

    Raises:
        TypeError, ValueError: ``part`` is something else.
    """
    part = require_choice("part", part, ["train", "test"])
    rows = client.train_rows if part == "train" else client.test_rows
    if not len(rows):
        return {}
    shares = client.task.present[rows].double().mean(dim=0).tolist()
    return dict(zip(client.task.modalities, shares, strict=True))
