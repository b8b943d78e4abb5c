"""``prototype_loss`` as a torch op, its gradient as another.

With p_c = exp(z_c - max z - log_sum) and g the upstream gradient of a row, the weights are
``w_c = g (p_c - [c = label]) / temperature``; then ``df = sum_c w_c p_c`` and ``dp_c = sum_rows w_c f``, each
taken back through the normalisation.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from mmfl_fast.kernels.prototype_loss import native
from mmfl_fast.kernels.registration import Primitive, register
from mmfl_fast.kernels.rows import compute_dtype


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Merge a batch axis with the axis of clients or groups; a view wherever the strides allow one."""
    batched = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return batched.flatten(0, 1)


def _fold_shared(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Do the same, but leave alone what all clients share."""
    if tensor is None or (dim is None and tensor.shape[0] == 1):
        return tensor
    return _fold(tensor, dim, size)


def _forward_fake(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype([features.dtype, prototypes.dtype])
    shape = features.shape[:2]
    return features.new_empty(shape, dtype=dtype), features.new_empty(shape, dtype=dtype)


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, labels, prototypes, class_mask, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, features, labels, prototypes, class_mask)


def _forward_backward(ctx: Any, loss_gradient: Tensor, _: Any) -> tuple[Any, ...]:
    loss, log_sum, features, labels, prototypes, class_mask = ctx.saved_tensors
    d_features, d_prototypes = prototype_loss_backward(
        loss_gradient,
        loss,
        log_sum,
        features,
        labels,
        prototypes,
        class_mask,
        *ctx.options,
    )
    return d_features, None, d_prototypes, None, None, None, None


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    features, labels, prototypes, class_mask, *options = arguments
    size = info.batch_size
    outputs = prototype_loss(
        _fold(features, in_dims[0], size),
        _fold(labels, in_dims[1], size),
        _fold_shared(prototypes, in_dims[2], size),
        _fold_shared(class_mask, in_dims[3], size),
        *options,
    )
    return tuple(output.unflatten(0, (size, -1)) for output in outputs), (0, 0)


def _backward_fake(
    loss_gradient: Tensor,
    loss: Tensor,
    log_sum: Tensor,
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), prototypes.new_empty(prototypes.shape)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    pass


def _backward_backward(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise NotImplementedError(
        "prototype_loss has no second derivative in its native form; "
        'run it under mmfl_fast.use_backend("reference")'
    )


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    *rows, prototypes, class_mask, temperature, normalise, tf32 = arguments
    size = info.batch_size
    # Prototypes that samples share have a gradient for each sample.
    outputs = prototype_loss_backward(
        *[_fold(tensor, dim, size) for tensor, dim in zip(rows, in_dims, strict=False)],
        _fold(prototypes, in_dims[5], size),
        _fold_shared(class_mask, in_dims[6], size),
        temperature,
        normalise,
        tf32,
    )
    return tuple(output.unflatten(0, (size, -1)) for output in outputs), (0, 0)


prototype_loss = register(
    Primitive(
        name="prototype_loss",
        signature="(Tensor features, Tensor labels, Tensor prototypes, Tensor? class_mask, "
        "float temperature, bool normalise, bool tf32) -> (Tensor loss, Tensor log_sum)",
        fake=_forward_fake,
        setup_context=_forward_setup,
        backward=_forward_backward,
        vmap=_forward_vmap,
    ),
    cpu=native.prototype_loss,
    cuda=native.prototype_loss_cuda,
)

prototype_loss_backward = register(
    Primitive(
        name="prototype_loss_backward",
        signature="(Tensor loss_gradient, Tensor loss, Tensor log_sum, Tensor features, "
        "Tensor labels, Tensor prototypes, Tensor? class_mask, float temperature, bool normalise, bool tf32) "
        "-> (Tensor feature_gradient, Tensor prototype_gradient)",
        fake=_backward_fake,
        setup_context=_backward_setup,
        backward=_backward_backward,
        vmap=_backward_vmap,
    ),
    cpu=native.prototype_loss_backward,
    cuda=native.prototype_loss_backward_cuda,
)
