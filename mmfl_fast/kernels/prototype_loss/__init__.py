"""InfoNCE of features against class prototypes, without a matrix of logits."""

from __future__ import annotations

from torch import Tensor

from mmfl_fast.kernels.backend import chosen
from mmfl_fast.kernels.prototype_loss import op, reference


def prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool = False,
) -> Tensor:
    """``log sum_c exp z_c - z_label`` per row, with ``z_c = <f, p_c> / temperature``.

    A row with label -100 is ignored, and so is one whose class the mask leaves out: its loss is 0 and it
    has no gradient. A row with a zero upstream gradient contributes nothing either, be it NaN.

    The native forward holds the logits of 64 rows and 256 classes per thread; both ways hold the prototypes
    once more in a packed form. The backward cuts the rows that share prototypes in up to 16 parts of at least
    512 rows, and 10 for every class; a part holds the logits of at most 256 rows, and the gradient of the
    prototypes in float64. Arithmetic is float32 (float64 if either tensor is float64), in runs of at most 256
    terms; gradients of prototypes are float64 across such runs.

    On a GPU the native form holds a tile of logits in registers. Its sums are float32 over all dimensions,
    and over 4096 rows or classes in a gradient, float64 beyond. Where features and prototypes have one 16-bit
    dtype, the weights of the gradients are rounded to TensorFloat-32. A float32 vector longer than 1e19
    counts as not finite.

    Args:
        features: [B, N, D].
        labels: [B, N] int64.
        prototypes: [G, C, D], G = 1 (shared) or G = B.
        class_mask: [M, C] bool, M = 1 or M = B, which classes take part; None: all.
        temperature: positive.
        normalise: scale features and prototypes to unit length. One no longer than 1e-12 counts as zero:
            its cosine is 0 and it has no gradient.
        tf32: let a GPU round float32 factors to TensorFloat-32, 10 bits after the point. A CPU never
            does, and the plain expression goes by torch's own setting.

    Returns:
        [B, N] in float32, or float64 if either tensor is float64. Differentiable once in the native form,
        any number of times in the reference.

    Raises:
        ValueError: a label outside [0, C) that is not -100. The native form on a GPU would have to wait for
            the labels: there such a row has a NaN loss and no gradient instead.
    """
    arguments = (features, labels, prototypes, class_mask, temperature, normalise, tf32)
    if chosen("prototype_loss", features.device) == "reference":
        return reference.prototype_loss(*arguments)
    loss: Tensor = op.prototype_loss(*arguments)[0]
    return loss
