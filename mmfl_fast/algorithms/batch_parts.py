"""Disjoint parts of one batch, where a method asks for independent batches in one step."""

from __future__ import annotations

from mmfl_fast.federation import Batch, Inputs


def interleaved(batch: Batch, parts: int) -> list[Batch]:
    """Part p holds rows ``p, p + parts, ...``, so padding behind the last row changes no part's rows."""
    return [
        Batch(
            Inputs({n: x[p::parts] for n, x in batch.inputs.values.items()}, batch.inputs.present[p::parts]),
            batch.labels[p::parts],
        )
        for p in range(parts)
    ]
