"""Local training whose matrix products round to bfloat16, while parameters and optimiser stay float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmfl_fast.federation.algorithm import Batch, ClientState, Context, Loss, Phase


def in_bfloat16(phases: Sequence[Phase], device: torch.device) -> list[Phase]:
    """The phases with their losses under ``torch.autocast``; the loss itself is float32, as are gradients.

    No scaling of the loss is needed: bfloat16 has the exponents of float32.
    """
    return [replace(phase, loss=_Autocast(phase.loss, device.type)) for phase in phases]


@dataclass(frozen=True)
class _Autocast:
    """A loss under autocast; equal for equal losses, which tells that a recorded step may be repeated."""

    loss: Loss
    device_type: str

    def __call__(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        # Without its cache of rounded weights, which would hold tensors of a transform that has ended.
        with torch.autocast(self.device_type, torch.bfloat16, cache_enabled=False):
            value = self.loss(params, batch, context)
        return value.float()
