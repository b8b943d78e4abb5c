"""Plain-torch expression of ``prototype_loss``; the contract is in ``__init__.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfl_fast.kernels.autocast import without_autocast
from mmfl_fast.kernels.prototype_loss.labels import IGNORED, check_labels
from mmfl_fast.kernels.rows import compute_dtype
from mmfl_fast.kernels.unit_rows import unit_rows


@without_autocast
def prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    _tf32: bool,
) -> Tensor:
    """See :func:`mmfl_fast.kernels.prototype_loss.prototype_loss`."""
    classes = prototypes.shape[1]
    check_labels(labels, classes)
    dtype = compute_dtype([features.dtype, prototypes.dtype])
    features, prototypes = features.to(dtype), prototypes.to(dtype)
    if class_mask is not None:
        shared_by_all = prototypes.shape[0] == 1 and class_mask.shape[0] > 1
        used = class_mask.any(dim=0, keepdim=True) if shared_by_all else class_mask
        # Whatever stands for a class that takes no part must not reach 0 * inf.
        prototypes = torch.where(used[..., None], prototypes, 0.0)
    if normalise:
        features, prototypes = unit_rows(features)[0], unit_rows(prototypes)[0]
    logits = features @ prototypes.mT / temperature
    counts = labels != IGNORED
    target = torch.where(counts, labels, 0)
    if class_mask is not None:
        taken = class_mask.expand(labels.shape[0], classes)
        counts = counts & taken.gather(1, target)
        # An ignored row keeps its logits: a row of -inf alone has no gradient.
        logits = torch.where(taken[:, None] | ~counts[..., None], logits, -torch.inf)
    picked = logits.gather(-1, target[..., None]).squeeze(-1)
    return torch.where(counts, logits.logsumexp(dim=-1) - picked, 0.0)
