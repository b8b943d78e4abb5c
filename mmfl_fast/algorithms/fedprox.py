"""FedProx: Federated Optimization in Heterogeneous Networks (Li et al., MLSys 2020), on the fusion model.

FedAvg whose clients are held near the model that they were sent:

    L = CE + mu/2 ||theta - theta_global||^2

The paper also lets slow clients stop early; here every client takes the steps that it takes in any other
method. ``mu`` 0.01 to 0.1 is what the FedMultimodal benchmark uses (papers.md 4.5).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from mmfl_fast.algorithms.drift import squared_drift
from mmfl_fast.algorithms.fusion_backbone import FusionConfig
from mmfl_fast.algorithms.fusion_fedavg import FusionFedAvg
from mmfl_fast.federation import Batch, ClientState, Context


class FedProxConfig(FusionConfig):
    """Options of FedProx."""

    mu: float = Field(0.01, ge=0, description="weight of the proximal term; 0 is FedAvg")


class FedProx(FusionFedAvg):
    """FedAvg with a proximal term; it concerns the clients alone."""

    Config = FedProxConfig

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy and the proximal term, over everything that was broadcast."""
        mu: float = self.config.mu
        return super().loss(params, batch, context) + mu / 2 * squared_drift(params, context.start)
