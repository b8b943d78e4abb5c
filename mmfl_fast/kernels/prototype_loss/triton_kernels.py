"""Device code of ``prototype_loss`` and its gradient. Logits live in tiles and never in memory."""

from __future__ import annotations

import triton
import triton.language as tl

from mmfl_fast.kernels.triton_kernels import multiply

# See labels.py and unit_rows.py.
IGNORED = tl.constexpr(-100)
SHORTEST_SQUARED = tl.constexpr(1e-24)


@triton.jit
def _scale(squares):
    """What brings a vector of this squared length to length 1; 0 for one that counts as zero."""
    short = squares <= SHORTEST_SQUARED
    return tl.where(short, 0, 1 / tl.sqrt(tl.where(short, 1, squares)))


@triton.jit
def _label_rows(
    labels, label_batch, label_step, class_mask, masks_each, client, row, rows, classes, MASKED: tl.constexpr
):
    """Labels of some rows, 0 where a row does not count; whether it counts; whether it is an error."""
    inside = row < rows
    label = tl.load(labels + client * label_batch + row * label_step, mask=inside, other=IGNORED)
    known = (label >= 0) & (label < classes)
    wrong = inside & (label != IGNORED) & ~known
    counts = inside & known
    label = tl.where(counts, label, 0)
    if MASKED:
        taken = tl.load(class_mask + client // masks_each * classes + label, mask=counts, other=0)
        counts = counts & (taken != 0)
    return label, counts, wrong


@triton.jit
def _taken(class_mask, masks_each, client, column, classes, MASKED: tl.constexpr):
    """Which classes take part."""
    taken = column < classes
    if MASKED:
        flags = tl.load(class_mask + client // masks_each * classes + column, mask=taken, other=0)
        taken = taken & (flags != 0)
    return taken


@triton.jit
def _cosines(
    left, left_step, left_used, right, right_step, right_used, dims,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr, NORMALISE: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Products of features and prototypes [ROWS, CLASSES], of unit vectors with NORMALISE, and the scales."""
    products = tl.zeros((ROWS, CLASSES), COMPUTE)
    left_squares = tl.zeros((ROWS,), COMPUTE)
    right_squares = tl.zeros((CLASSES,), COMPUTE)
    for first in range(0, dims, DEPTH):
        d = first + tl.arange(0, DEPTH).to(tl.int64)
        inside = (d < dims)[None, :]
        x = tl.load(left[:, None] + d[None, :] * left_step, mask=left_used[:, None] & inside, other=0)
        y = tl.load(right[:, None] + d[None, :] * right_step, mask=right_used[:, None] & inside, other=0)
        products += multiply(x.to(FACTOR), tl.trans(y.to(FACTOR)), COMPUTE, PRECISION)
        if NORMALISE:
            x, y = x.to(COMPUTE), y.to(COMPUTE)
            left_squares += tl.sum(x * x, axis=1)
            right_squares += tl.sum(y * y, axis=1)
    left_scale = tl.zeros((ROWS,), COMPUTE) + 1
    right_scale = tl.zeros((CLASSES,), COMPUTE) + 1
    if NORMALISE:
        left_scale, right_scale = _scale(left_squares), _scale(right_squares)
        products = products * left_scale[:, None] * right_scale[None, :]
    return products, left_scale, right_scale


@triton.jit
def _label_cosine(
    left, left_step, right, right_step, used, dims,
    COMPUTE: tl.constexpr, NORMALISE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Products of features with the prototypes of their labels [ROWS]."""
    product = tl.zeros((ROWS,), COMPUTE)
    left_squares = tl.zeros((ROWS,), COMPUTE)
    right_squares = tl.zeros((ROWS,), COMPUTE)
    for first in range(0, dims, DEPTH):
        d = first + tl.arange(0, DEPTH).to(tl.int64)
        mask = used[:, None] & (d < dims)[None, :]
        x = tl.load(left[:, None] + d[None, :] * left_step, mask=mask, other=0).to(COMPUTE)
        y = tl.load(right[:, None] + d[None, :] * right_step, mask=mask, other=0).to(COMPUTE)
        product += tl.sum(x * y, axis=1)
        if NORMALISE:
            left_squares += tl.sum(x * x, axis=1)
            right_squares += tl.sum(y * y, axis=1)
    if NORMALISE:
        product = product * _scale(left_squares) * _scale(right_squares)
    return product


@triton.jit
def _log_of_one_and(x):
    """``log(1 + x)`` of what is not negative, to the relative precision of x."""
    more = 1 + x
    # The logarithm is of what was rounded: its quotient is that of the number it belongs to.
    return tl.where(more == 1, x, tl.log(more) * (x / (more - 1)))


@triton.jit
def forward_kernel(
    features, labels, prototypes, class_mask, loss, log_sum,
    feature_batch, feature_row, feature_step, label_batch, label_step,
    prototype_group, prototype_row, prototype_step,
    rows, dims, classes, clients_each, masks_each, inverse_temperature: tl.float64,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr, NORMALISE: tl.constexpr,
    MASKED: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Loss and ``log sum_c exp(z_c - max z)`` of ROWS rows of one client.

    Args:
        features: [B, N, D] with strides.
        labels: [B, N] int64 with strides.
        prototypes: [G, C, D] with strides.
        class_mask: [M, C] contiguous; with MASKED.
        loss: [B, N] contiguous.
        log_sum: [B, N] contiguous.
        feature_batch: strides of the tensors, as those that follow.
        rows: N.
        dims: D.
        classes: C.
        clients_each: clients per group of prototypes, B / G.
        masks_each: clients per mask, B / M.
        inverse_temperature: of the logits.
        COMPUTE: type of the arithmetic.
        FACTOR: type of the factors.
        PRECISION: of products of float32.
        NORMALISE: whether vectors are scaled to unit length.
        MASKED: whether there is a class mask.
        ROWS: in a tile.
        CLASSES: in a tile.
        DEPTH: of a tile.
    """
    sharpness = tl.full((), inverse_temperature, tl.float64).to(COMPUTE)
    blocks = tl.cdiv(rows, ROWS)
    client = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    label, counts, wrong = _label_rows(
        labels, label_batch, label_step, class_mask, masks_each, client, row, rows, classes, MASKED
    )
    left = features + client * feature_batch + row * feature_row
    group = prototypes + client // clients_each * prototype_group
    largest = tl.full((ROWS,), float("-inf"), COMPUTE)
    total = tl.zeros((ROWS,), COMPUTE)
    picked = tl.zeros((ROWS,), COMPUTE)
    for first in range(0, classes, CLASSES):
        column = first + tl.arange(0, CLASSES).to(tl.int64)
        taken = _taken(class_mask, masks_each, client, column, classes, MASKED)
        z, _, _ = _cosines(
            left, feature_step, counts, group + column * prototype_row, prototype_step, taken, dims,
            COMPUTE, FACTOR, PRECISION, NORMALISE, ROWS, CLASSES, DEPTH,
        )  # fmt: skip
        z = tl.where(taken[None, :], z * sharpness, float("-inf"))
        is_label = column[None, :] == label[:, None]
        picked += tl.sum(tl.where(is_label, z, 0), axis=1)
        z = tl.where(is_label, float("-inf"), z)
        new = tl.maximum(largest, tl.max(z, axis=1))
        # As long as no other class took part there is nothing to subtract.
        offset = tl.where(new == float("-inf"), 0, new)
        total = total * tl.exp(largest - offset) + tl.sum(tl.exp(z - offset[:, None]), axis=1)
        largest = new
    place = client * rows + row
    # The exponential of the largest logit is 1, and the others may be too small to be added to it.
    gap = largest - picked
    smaller = tl.exp(-tl.abs(gap))
    log_total = _log_of_one_and(tl.where(gap > 0, total - 1 + smaller, total * smaller))
    value = log_total + tl.maximum(gap, 0)
    value = tl.where(picked - picked == 0, value, float("nan"))
    value = tl.where(wrong, float("nan"), tl.where(counts, value, 0))
    tl.store(loss + place, value, mask=row < rows)
    tl.store(log_sum + place, tl.where(counts, log_total, 0), mask=row < rows)


@triton.jit
def _weights(cosines, column, taken, label, active, upstream, loss, label_cosine, sharpness):
    """``g (p_c - [c = label]) / temperature``."""
    # Large logits are subtracted from one another before the loss, which would be lost in one of them.
    others = tl.exp((cosines - label_cosine[:, None]) * sharpness - loss[:, None])
    own = tl.exp(-loss) - 1
    is_label = column[None, :] == label[:, None]
    weights = upstream[:, None] * tl.where(is_label, own[:, None], others) * sharpness
    return tl.where(active[:, None] & taken[None, :], weights, 0)


@triton.jit
def _rows_state(
    features, labels, prototypes, class_mask, upstream, loss, client, row,
    feature_batch, feature_row, feature_step, label_batch, label_step,
    prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
    rows, dims, classes, clients_each, masks_each,
    COMPUTE: tl.constexpr, NORMALISE: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """What the gradient needs of some rows: where they are, label, activity, upstream, loss, label cosine."""
    label, active, _ = _label_rows(
        labels, label_batch, label_step, class_mask, masks_each, client, row, rows, classes, MASKED
    )
    g = tl.load(upstream + client * upstream_batch + row * upstream_step, mask=active, other=0)
    value = tl.load(loss + client * rows + row, mask=active, other=0)
    active = active & (g != 0)
    left = features + client * feature_batch + row * feature_row
    right = prototypes + client // clients_each * prototype_group + label * prototype_row
    own = _label_cosine(
        left, feature_step, right, prototype_step, active, dims, COMPUTE, NORMALISE, ROWS, DEPTH
    )
    return left, label, active, g.to(COMPUTE), value, own


@triton.jit
def _feature_gradient(
    program, features, labels, prototypes, class_mask, upstream, loss, gradient,
    feature_batch, feature_row, feature_step, label_batch, label_step,
    prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
    rows, dims, classes, clients_each, masks_each, sharpness,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    GRADIENT_PRECISION: tl.constexpr, NORMALISE: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """DIMS components of the gradients of ROWS features."""
    strips = tl.cdiv(dims, DIMS)
    blocks = tl.cdiv(rows, ROWS)
    strip = (program % strips).to(tl.int64) * DIMS + tl.arange(0, DIMS)
    client = (program // strips // blocks).to(tl.int64)
    row = (program // strips % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    left, label, active, g, value, own = _rows_state(
        features, labels, prototypes, class_mask, upstream, loss, client, row,
        feature_batch, feature_row, feature_step, label_batch, label_step,
        prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
        rows, dims, classes, clients_each, masks_each,
        COMPUTE, NORMALISE, MASKED, ROWS, DEPTH,
    )  # fmt: skip
    group = prototypes + client // clients_each * prototype_group
    sums = tl.zeros((ROWS, DIMS), COMPUTE)
    radial = tl.zeros((ROWS,), COMPUTE)
    scale = tl.zeros((ROWS,), COMPUTE)
    for first in range(0, classes, CLASSES):
        column = first + tl.arange(0, CLASSES).to(tl.int64)
        taken = _taken(class_mask, masks_each, client, column, classes, MASKED)
        right = group + column * prototype_row
        cosines, scale, right_scale = _cosines(
            left, feature_step, active, right, prototype_step, taken, dims,
            COMPUTE, FACTOR, PRECISION, NORMALISE, ROWS, CLASSES, DEPTH,
        )  # fmt: skip
        w = _weights(cosines, column, taken, label, active, g, value, own, sharpness)
        radial += tl.sum(w * cosines, axis=1)
        p = tl.load(
            right[:, None] + strip[None, :] * prototype_step,
            mask=taken[:, None] & (strip < dims)[None, :],
            other=0,
        ).to(COMPUTE)
        sums += multiply(w * right_scale[None, :], p, COMPUTE, GRADIENT_PRECISION)
    if NORMALISE:
        f = tl.load(
            left[:, None] + strip[None, :] * feature_step,
            mask=active[:, None] & (strip < dims)[None, :],
            other=0,
        ).to(COMPUTE)
        sums = (sums - f * (scale * radial)[:, None]) * scale[:, None]
    place = (client * rows + row)[:, None] * dims + strip[None, :]
    sums = tl.where(active[:, None], sums, 0)
    tl.store(gradient + place, sums, mask=(row < rows)[:, None] & (strip < dims)[None, :])


@triton.jit
def _prototype_gradient(
    program, features, labels, prototypes, class_mask, upstream, loss, partial, partial_radial,
    feature_batch, feature_row, feature_step, label_batch, label_step,
    prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
    rows, dims, classes, groups, clients_each, masks_each, splits, sharpness,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    GRADIENT_PRECISION: tl.constexpr, NORMALISE: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """DIMS components of the gradients of CLASSES unit prototypes, over one split of the rows."""
    strips = tl.cdiv(dims, DIMS)
    class_blocks = tl.cdiv(classes, CLASSES)
    blocks = tl.cdiv(rows, ROWS)
    strip = (program % strips).to(tl.int64) * DIMS + tl.arange(0, DIMS)
    column = (program // strips % class_blocks).to(tl.int64) * CLASSES + tl.arange(0, CLASSES)
    group = (program // strips // class_blocks % groups).to(tl.int64)
    split = (program // strips // class_blocks // groups).to(tl.int64)
    right = prototypes + group * prototype_group + column * prototype_row
    items = blocks.to(tl.int64) * clients_each
    sums = tl.zeros((CLASSES, DIMS), COMPUTE)
    radial = tl.zeros((CLASSES,), COMPUTE)
    for item in range(split * items // splits, (split + 1) * items // splits):
        client = group * clients_each + item // blocks
        row = item % blocks * ROWS + tl.arange(0, ROWS)
        left, label, active, g, value, own = _rows_state(
            features, labels, prototypes, class_mask, upstream, loss, client, row,
            feature_batch, feature_row, feature_step, label_batch, label_step,
            prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
            rows, dims, classes, clients_each, masks_each,
            COMPUTE, NORMALISE, MASKED, ROWS, DEPTH,
        )  # fmt: skip
        taken = _taken(class_mask, masks_each, client, column, classes, MASKED)
        cosines, left_scale, _ = _cosines(
            left, feature_step, active, right, prototype_step, taken, dims,
            COMPUTE, FACTOR, PRECISION, NORMALISE, ROWS, CLASSES, DEPTH,
        )  # fmt: skip
        w = _weights(cosines, column, taken, label, active, g, value, own, sharpness)
        radial += tl.sum(w * cosines, axis=0)
        f = tl.load(
            left[:, None] + strip[None, :] * feature_step,
            mask=active[:, None] & (strip < dims)[None, :],
            other=0,
        ).to(COMPUTE)
        sums += multiply(tl.trans(w * left_scale[:, None]), f, COMPUTE, GRADIENT_PRECISION)
    line = (split * groups + group) * classes + column
    tl.store(
        partial + line[:, None] * dims + strip[None, :],
        sums,
        mask=(column < classes)[:, None] & (strip < dims)[None, :],
    )
    if program % strips == 0:
        tl.store(partial_radial + line, radial, mask=column < classes)


@triton.jit
def backward_kernel(
    features, labels, prototypes, class_mask, upstream, loss, gradient, partial, partial_radial,
    feature_batch, feature_row, feature_step, label_batch, label_step,
    prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
    rows, dims, classes, groups, clients_each, masks_each, splits, feature_programs,
    inverse_temperature: tl.float64,
    COMPUTE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    GRADIENT_PRECISION: tl.constexpr, NORMALISE: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Gradients of features, by the first programs, and partial ones of unit prototypes, by the others.

    Args:
        features: the arguments up to ``masks_each`` are those of the forward kernel, and:
        upstream: [B, N] gradient of the loss, with strides.
        loss: [B, N] contiguous.
        gradient: [B, N, D] contiguous, of the features.
        partial: [splits, G, C, D].
        partial_radial: [splits, G, C] products of the prototypes with their gradients.
        rows: N.
        dims: D.
        classes: C.
        groups: G.
        clients_each: B / G.
        masks_each: B / M.
        splits: of the rows of a group.
        feature_programs: how many there are.
        inverse_temperature: of the logits.
        COMPUTE: type of the arithmetic.
        FACTOR: type of the factors of logits.
        PRECISION: of products of float32 in logits.
        GRADIENT_PRECISION: of such products in gradients.
        NORMALISE: whether vectors are scaled to unit length.
        MASKED: whether there is a class mask.
        ROWS: in a tile.
        CLASSES: in a tile.
        DEPTH: of a tile of logits.
        DIMS: components of a gradient in a program.
    """
    sharpness = tl.full((), inverse_temperature, tl.float64).to(COMPUTE)
    program = tl.program_id(0)
    if program < feature_programs:
        _feature_gradient(
            program, features, labels, prototypes, class_mask, upstream, loss, gradient,
            feature_batch, feature_row, feature_step, label_batch, label_step,
            prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
            rows, dims, classes, clients_each, masks_each, sharpness,
            COMPUTE, FACTOR, PRECISION, GRADIENT_PRECISION, NORMALISE, MASKED, ROWS, CLASSES, DEPTH, DIMS,
        )  # fmt: skip
    else:
        _prototype_gradient(
            program - feature_programs,
            features, labels, prototypes, class_mask, upstream, loss, partial, partial_radial,
            feature_batch, feature_row, feature_step, label_batch, label_step,
            prototype_group, prototype_row, prototype_step, upstream_batch, upstream_step,
            rows, dims, classes, groups, clients_each, masks_each, splits, sharpness,
            COMPUTE, FACTOR, PRECISION, GRADIENT_PRECISION, NORMALISE, MASKED, ROWS, CLASSES, DEPTH, DIMS,
        )  # fmt: skip


@triton.jit
def join_kernel(
    prototypes, partial, partial_radial, gradient, prototype_group, prototype_row, prototype_step,
    dims, classes, lines, splits,
    COMPUTE: tl.constexpr, NORMALISE: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Add the partial gradients of one prototype in float64, in order, and take them back through its scale.

    Args:
        prototypes: [G, C, D] with strides.
        partial: [splits, G, C, D].
        partial_radial: [splits, G, C].
        gradient: [G, C, D] contiguous.
        prototype_group: stride.
        prototype_row: stride.
        prototype_step: stride.
        dims: D.
        classes: C.
        lines: G C.
        splits: of the rows.
        COMPUTE: type of the arithmetic.
        NORMALISE: whether vectors were scaled to unit length.
        DIMS: components at a time.
    """
    line = tl.program_id(0).to(tl.int64)
    step = line * 0 + lines
    source = prototypes + line // classes * prototype_group + line % classes * prototype_row
    radial = tl.load(partial_radial + line).to(tl.float64)
    squares = tl.zeros((DIMS,), COMPUTE)
    if NORMALISE:
        for s in range(1, splits):
            radial += tl.load(partial_radial + s * step + line).to(tl.float64)
        for first in range(0, dims, DIMS):
            d = first + tl.arange(0, DIMS).to(tl.int64)
            p = tl.load(source + d * prototype_step, mask=d < dims, other=0).to(COMPUTE)
            squares += p * p
    scale = _scale(tl.sum(squares, axis=0)).to(tl.float64)
    for first in range(0, dims, DIMS):
        d = first + tl.arange(0, DIMS).to(tl.int64)
        total = tl.zeros((DIMS,), tl.float64)
        for s in range(splits):
            total += tl.load(partial + (s * step + line) * dims + d, mask=d < dims, other=0).to(tl.float64)
        if NORMALISE:
            p = tl.load(source + d * prototype_step, mask=d < dims, other=0).to(tl.float64)
            # What stands for a class that took no part may be anything.
            total -= tl.where(radial == 0, 0, p * scale * radial)
            total = tl.where(total == 0, 0, total * scale)
        tl.store(gradient + line * dims + d, total.to(COMPUTE), mask=d < dims)
