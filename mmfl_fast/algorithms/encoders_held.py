"""Which encoders of the fusion model are a client's to exchange: those of the modalities it holds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmfl_fast.data import Client


def encoder_of(params: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """The parameters of one modality's encoder."""
    return {n: t for n, t in params.items() if n.startswith(f"encoder.{modality}.")}


def without_foreign_encoders(params: Mapping[str, Tensor], client: Client) -> dict[str, Tensor]:
    """Everything but the encoders of modalities that no training row of the client has."""
    foreign = [encoder_of(params, m) for m in client.task.modalities if m not in client.modalities]
    return {n: t for n, t in params.items() if not any(n in encoder for encoder in foreign)}
