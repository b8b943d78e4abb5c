"""How far a client has moved from where its round began."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.federation import ClientState


def squared_drift(params: ClientState, start: ClientState) -> Tensor:
    """``sum ||theta - theta_start||^2`` over all parameters, scalar; its gradient is twice the difference."""
    return torch.stack([(tensor - start[name]).square().sum() for name, tensor in params.items()]).sum()
