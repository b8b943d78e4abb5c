"""The axis of clients, which arguments of the op may lack and those of the kernel have."""

from __future__ import annotations

from torch import Tensor


def with_client_axis(
    features: Tensor, labels: Tensor, prototypes: Tensor, class_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Views as :func:`mmfl_fast.kernels.prototype_loss.prototype_loss` takes them.

    Args:
        features: [B, N, D] or [N, D].
        labels: [B, N] or [N].
        prototypes: [G, C, D] or [C, D].
        class_mask: [M, C] or [C], or None.
    """
    return (
        features if features.dim() == 3 else features.unsqueeze(0),
        labels if labels.dim() == 2 else labels.unsqueeze(0),
        prototypes if prototypes.dim() == 3 else prototypes.unsqueeze(0),
        class_mask if class_mask is None or class_mask.dim() == 2 else class_mask.unsqueeze(0),
    )
