"""Class prototypes and the contrastive loss against them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfl_fast.kernels import one_step
from mmfl_fast.kernels.prototype_loss.labels import IGNORED, check_labels
from mmfl_fast.ops.precision import Precision, allows_tf32
from mmfl_fast.ops.tensors import (
    REAL_NUMBER,
    WHOLE_NUMBER,
    as_floating,
    as_labels,
    as_tensor,
    check_same_device,
    describe,
)

_REDUCTIONS = ("mean", "sum", "none")


def class_prototypes(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of every class: the local prototypes of MFCPL (papers.md 4.3) and FedProto.

    Sums are float64 and deterministic. A non-finite feature stays in its own class.

    Args:
        features: [N, D].
        labels: [N] integers in [0, num_classes), or -100 for a row that takes no part.
        num_classes: C.

    Returns:
        Prototypes [C, D] in the dtype of ``features``, zero for a class without rows, differentiable; and
        counts [C] int64.

    Raises:
        TypeError: wrong dtype, or ``num_classes`` is not an integer.
        ValueError: wrong shapes, ``num_classes`` < 1, or a label out of range (the message names it). Under
            ``torch.compile`` and ``torch.func`` labels are not looked at.
    """
    features, labels = as_floating(features, "features"), as_labels(labels, "labels")
    if isinstance(num_classes, bool) or not isinstance(num_classes, WHOLE_NUMBER):
        raise TypeError(f"num_classes must be an integer; got {describe(num_classes)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}")
    if features.dim() != 2:
        raise ValueError(f"features must be [N, D]; got {describe(features)}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must be [{features.shape[0]}] like the features; got {describe(labels)}")
    check_same_device(features=features, labels=labels)
    check_labels(labels, num_classes)

    # One class more, dropped at the end, takes the rows that are ignored.
    index = torch.where(labels == IGNORED, num_classes, labels)
    counts = labels.new_zeros(num_classes + 1).index_add(0, index, torch.ones_like(index))[:-1]
    sums = _sums_by_class(features.double(), index, num_classes + 1)[:-1]
    prototypes = sums / counts.clamp(min=1)[:, None]
    return prototypes.to(features.dtype), counts


def _sums_by_class(rows: Tensor, index: Tensor, classes: int) -> Tensor:
    if rows.device.type == "cpu":
        return rows.new_zeros(classes, rows.shape[1]).index_add(0, index, rows)
    # index_add on a GPU adds in any order; a product does not.
    member = (index == torch.arange(classes, device=index.device)[:, None]).to(rows.dtype)
    finite = torch.isfinite(rows)
    sums = member @ torch.where(finite, rows, 0.0)
    spoilt = member @ (~finite).to(rows.dtype)
    return torch.where(spoilt > 0, torch.nan, sums)


def prototype_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.1,
    class_mask: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    precision: Precision = "fp32",
) -> Tensor:
    """InfoNCE of features against class prototypes: CMPC of MFCPL (papers.md 4.3).

    ``-log(exp(s_y / temperature) / sum_c exp(s_c / temperature))`` with ``s_c`` the cosine of a feature and
    prototype c (their inner product without ``normalize``). The N x C logits are never stored.

    A row is ignored when its label is -100 or a class that ``class_mask`` leaves out: its loss is 0, it has
    no gradient and it is not in the mean. A vector no longer than 1e-12 has cosine 0 to everything and no
    gradient. A NaN in a feature stays in the loss of its row.

    Args:
        features: [N, D], or [B, N, D] for B clients in one launch; any strides.
        labels: [N] or [B, N] integers in [0, C), or -100.
        prototypes: [C, D] shared by all clients, or [B, C, D].
        temperature: positive and finite.
        class_mask: [C] or [B, C] bool, the classes in the denominator; None takes all.
        normalize: scale features and prototypes to unit length.
        reduction: ``"mean"`` over all rows that are not ignored (0 if there is none), ``"sum"``, or
            ``"none"``. For a value per client, call it under ``torch.func.vmap``; that is one launch, too.
        precision: of float32 products on a GPU, ``"fp32"`` or ``"tf32"``, see
            :data:`mmfl_fast.ops.precision.Precision`.

    Returns:
        A scalar; for ``"none"`` the loss per row, [N] or [B, N]. float64 if features or prototypes are, else
        float32: the loss of half-precision features is not rounded to half. Differentiable in features
        and prototypes, whose gradients have their own dtypes; a second derivative needs
        ``use_backend("reference")``.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shapes, devices that differ, temperature, reduction or precision out of range, or a
            label outside [0, C) that is not -100; the message names the value and its row.
    """
    features, labels = as_floating(features, "features"), as_labels(labels, "labels")
    prototypes = as_floating(prototypes, "prototypes")
    mask = None if class_mask is None else as_tensor(class_mask, "class_mask")
    _check_loss_options(temperature, reduction)
    _check_loss_shapes(features, labels, prototypes, mask)

    tf32 = allows_tf32(precision)
    arguments = features, labels, prototypes, mask, float(temperature), bool(normalize), tf32
    if reduction == "mean":
        return one_step.mean_prototype_loss(*arguments)
    losses = one_step.prototype_losses(*arguments)
    return losses.sum() if reduction == "sum" else losses


def _check_loss_options(temperature: Any, reduction: str) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, REAL_NUMBER):
        raise TypeError(f"temperature must be a number; got {describe(temperature)}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite; got {temperature}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}; got {reduction!r}")


def _check_loss_shapes(features: Tensor, labels: Tensor, prototypes: Tensor, mask: Tensor | None) -> None:
    *clients, rows, width = features.shape if features.dim() in (2, 3) else (0, 0)
    if width == 0:
        raise ValueError(f"features must be [N, D] or [B, N, D] with D > 0; got {describe(features)}")
    if labels.shape != (*clients, rows):
        raise ValueError(f"labels must be {[*clients, rows]} like the features; got {describe(labels)}")
    classes = prototypes.shape[-2] if prototypes.dim() in (2, features.dim()) else 0
    if classes == 0 or prototypes.shape not in ((classes, width), (*clients, classes, width)):
        raise ValueError(
            f"prototypes must be [C, D], or [B, C, D] beside features [B, N, D], with C > 0; got "
            f"{describe(prototypes)} beside {describe(features)}"
        )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"class_mask must be bool; got {describe(mask)}")
        # A mask for each client beside prototypes that they share, too.
        if mask.shape not in ((classes,), (*clients, classes)):
            raise ValueError(f"class_mask must be [C] or [B, C] with C = {classes}; got {describe(mask)}")
    check_same_device(features=features, labels=labels, prototypes=prototypes, class_mask=mask)
