from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfl_fast import _C
from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.prototype_loss import prototype_loss

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def inputs(clients=1, rows=13, dims=7, classes=5, groups=1, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(clients, rows, dims, generator=g).to(dtype).requires_grad_()
    labels = torch.randint(0, classes, (clients, rows), generator=g)
    prototypes = torch.randn(groups, classes, dims, generator=g).to(dtype).requires_grad_()
    upstream = torch.randn(clients, rows, generator=g).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    return features, labels, prototypes, upstream


def expression(features, labels, prototypes, mask=None, temperature=0.1, normalise=True):
    """The plain expression in the dtype of its input; rows of the oracle and of torch's own error."""
    if normalise:
        features = torch.nn.functional.normalize(features, dim=-1)
        prototypes = torch.nn.functional.normalize(prototypes, dim=-1)
    logits = features @ prototypes.mT / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(
        labels.shape
    )


def with_gradients(function, features, labels, prototypes, upstream, *options):
    features, prototypes = features.detach().requires_grad_(), prototypes.detach().requires_grad_()
    loss = function(features, labels, prototypes, *options)
    return [loss, *torch.autograd.grad(loss, (features, prototypes), upstream.to(loss.dtype))]


def assert_accurate(features, labels, prototypes, upstream, *options):
    ours = with_gradients(prototype_loss, features, labels, prototypes, upstream, *options)
    plain = with_gradients(expression, features, labels, prototypes, upstream, *options)
    exact = with_gradients(expression, features.double(), labels, prototypes.double(), upstream, *options)
    for got, torch_value, truth in zip(ours, plain, exact, strict=True):
        scale = truth.abs().max()
        error = (got.double() - truth).abs().max()
        allowed = 2 * (torch_value.double() - truth).abs().max()
        # One rounding of what is stored, and a few of the arithmetic.
        allowed = allowed + scale * (torch.finfo(got.dtype).eps + 1e-6 * (got.dtype != torch.float64))
        assert error <= allowed + 1e-14 * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalise", [True, False])
def test_values_and_gradients_match_float64(dtype, normalise):
    assert_accurate(*inputs(rows=70, dims=33, classes=21, dtype=dtype), None, 0.3, normalise)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 131])
@pytest.mark.parametrize("classes", [1, 2, 16, 33])
def test_odd_rows_and_classes(rows, classes):
    assert_accurate(*inputs(rows=rows, dims=5, classes=classes), None, 0.1, True)


@pytest.mark.parametrize("dims", [1, 15, 16, 17, 255, 256, 257, 600])
def test_odd_dims(dims):
    assert_accurate(*inputs(rows=9, dims=dims, classes=7), None, 0.1, dims > 1)


def test_more_rows_and_classes_than_one_block():
    assert_accurate(*inputs(rows=1100, dims=12, classes=531), None, 0.1, True)


@pytest.mark.parametrize("rows", [1024, 2100])
def test_so_many_rows_that_they_are_cut_in_parts(rows):
    assert_accurate(*inputs(rows=rows, dims=20, classes=3), None, 0.1, True)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clients_in_one_call(groups, dtype):
    assert_accurate(*inputs(clients=4, rows=40, classes=9, groups=groups, dtype=dtype), None, 0.1, True)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("masks", [1, 3])
def test_class_mask(groups, masks):
    features, labels, prototypes, upstream = inputs(clients=3, groups=groups, classes=6)
    mask = torch.rand(masks, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 2] = True
    labels = torch.where(mask.expand(3, 6).gather(1, labels), labels, 2)
    assert_accurate(features, labels, prototypes, upstream, mask, 0.1, True)


def test_mixed_dtypes_keep_their_own_gradients():
    features, labels, prototypes, upstream = inputs(dtype=torch.bfloat16)
    prototypes = prototypes.detach().float()
    loss, d_features, d_prototypes = with_gradients(
        prototype_loss, features, labels, prototypes, upstream, None, 0.1, True
    )
    exact = with_gradients(expression, features.double(), labels, prototypes.double(), upstream)
    assert (loss.dtype, d_features.dtype, d_prototypes.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d_features.double(), exact[1], rtol=8e-3, atol=1e-4)
    torch.testing.assert_close(d_prototypes.double(), exact[2], rtol=1e-4, atol=1e-5)


def strided_forms(tensor: Tensor) -> list[Tensor]:
    """The same values in a slice of a larger buffer and in two transposed layouts."""
    sliced = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), torch.nan, dtype=tensor.dtype)
    sliced = sliced[..., 1 : 1 + 2 * tensor.shape[-1] : 2]
    return [
        sliced.copy_(tensor),
        tensor.mT.contiguous().mT,
        tensor.transpose(0, 1).contiguous().transpose(0, 1),
    ]


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_change_a_bit(form, dtype):
    features, labels, prototypes, upstream = inputs(clients=3, rows=11, groups=3, dtype=dtype)
    features, prototypes = features.detach(), prototypes.detach()
    expected = with_gradients(prototype_loss, features, labels, prototypes, upstream, None, 0.1, True)
    strided = [strided_forms(features)[form], labels.mT.contiguous().mT, strided_forms(prototypes)[form]]
    got = with_gradients(prototype_loss, *strided, upstream.mT.contiguous().mT, None, 0.1, True)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_expanded_features_prototypes_and_upstream():
    features, labels, prototypes, _ = inputs(clients=1, rows=6)
    upstream = torch.full((), 0.7).expand(4, 6)
    expanded = features.detach().expand(4, 6, 7), labels.expand(4, 6), prototypes.detach().expand(4, 5, 7)
    whole = [tensor.contiguous() for tensor in expanded]
    got = with_gradients(prototype_loss, *expanded, upstream, None, 0.1, True)
    expected = with_gradients(prototype_loss, *whole, upstream.contiguous(), None, 0.1, True)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_backward_twice_gives_the_same_and_adds():
    features, labels, prototypes, upstream = inputs()
    loss = prototype_loss(features, labels, prototypes, None, 0.1, True)
    loss.backward(upstream, retain_graph=True)
    first = features.grad.clone(), prototypes.grad.clone()
    loss.backward(upstream)
    assert torch.equal(features.grad, 2 * first[0])
    assert torch.equal(prototypes.grad, 2 * first[1])


@pytest.mark.parametrize(("clients", "groups"), [(1, 1), (5, 5), (5, 1)])
def test_same_bits_for_every_thread_count(clients, groups):
    arguments = inputs(clients=clients, rows=400, dims=40, classes=37, groups=groups)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8, 8):
            torch.set_num_threads(count)
            results.append(with_gradients(prototype_loss, *arguments, None, 0.1, True))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_ignored_rows(backend):
    features, labels, prototypes, upstream = inputs(rows=6)
    mask = torch.tensor([[True, False, True, True, True]])
    labels = torch.tensor([[0, -100, 1, 3, 4, 2]])
    features = features.detach().clone()
    features[0, 1] = torch.nan if backend == "native" else 1.0
    with use_backend(backend):
        loss, d_features, d_prototypes = with_gradients(
            prototype_loss, features, labels, prototypes, upstream, mask, 0.1, True
        )
    kept = [0, 3, 4, 5]
    exact = with_gradients(
        expression, features[:, kept].double(), labels[:, kept], prototypes.double(), upstream[:, kept], mask
    )
    assert torch.equal(loss[0, [1, 2]], torch.zeros(2))
    assert torch.equal(d_features[0, [1, 2]], torch.zeros(2, 7))
    assert torch.equal(d_prototypes[0, 1], torch.zeros(7))
    torch.testing.assert_close(loss[:, kept].double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d_features[:, kept].double(), exact[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_prototypes.double(), exact[2], rtol=1e-4, atol=1e-5)


def test_an_ignored_row_with_logits_far_below_zero():
    features, prototypes = torch.full((1, 3, 4), -1.0), torch.ones(1, 5, 4)
    labels = torch.tensor([[0, -100, 2]])
    loss = prototype_loss(features, labels, prototypes, None, 4 / 130, False)
    torch.testing.assert_close(loss, np.log(5) * torch.tensor([[1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_all_rows_ignored(backend):
    features, labels, prototypes, upstream = inputs(rows=3)
    mask = torch.zeros(1, 5, dtype=torch.bool)
    labels[0, 0] = -100
    with use_backend(backend):
        results = with_gradients(prototype_loss, features, labels, prototypes, upstream, mask, 0.1, True)
    for result in results:
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("label", [-1, -99, 5, 1 << 40])
def test_label_out_of_range_is_named(backend, label):
    features, labels, prototypes, _ = inputs(clients=2)
    labels[1, 4] = label
    with use_backend(backend), pytest.raises(ValueError, match=f"got {label} at row 4 of client 1"):
        prototype_loss(features, labels, prototypes, None, 0.1, True)


def test_rows_of_any_length_beside_each_other():
    # The squares of floats of these sizes overflow or underflow.
    sizes = torch.tensor([1.0, 1e-30, 1e25, 1e-12, 1.0, 1e18, 3e-8, 1.0, 1e-20, 1e37, 1.0, 1e3, 1e-6])
    features, labels, prototypes, upstream = inputs()
    expected = with_gradients(prototype_loss, features, labels, prototypes, upstream, None, 0.1, True)
    # Directions of rows count, not their lengths; only those no longer than 1e-12 count as zero.
    long_enough = sizes > 1e-11
    scaled = features * sizes[:, None]
    loss, d_features, _ = with_gradients(
        prototype_loss, scaled, labels, prototypes, upstream, None, 0.1, True
    )
    torch.testing.assert_close(loss[:, long_enough], expected[0][:, long_enough], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        (d_features * sizes[:, None])[:, long_enough], expected[1][:, long_enough], rtol=1e-4, atol=1e-5
    )
    for i in (1, 8):
        assert loss[0, i].item() == pytest.approx(np.log(5), rel=1e-6)
        assert torch.equal(d_features[0, i], torch.zeros(7))


def test_non_finite_feature_of_a_single_class():
    features, labels, prototypes, upstream = inputs(rows=3, classes=1)
    features = features.detach().clone()
    features[0, 1, 0] = torch.nan
    loss, d_features, _ = with_gradients(
        prototype_loss, features, labels, prototypes, upstream, None, 0.1, True
    )
    assert loss[0].isnan().tolist() == [False, True, False]
    assert d_features[0].isnan().all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("normalise", [True, False])
def test_non_finite_feature_stays_in_its_row(value, normalise):
    features, labels, prototypes, upstream = inputs()
    expected = with_gradients(prototype_loss, features, labels, prototypes, upstream, None, 0.1, normalise)
    features = features.detach().clone()
    features[0, 3, 2] = value
    loss, d_features, _ = with_gradients(
        prototype_loss, features, labels, prototypes, upstream, None, 0.1, normalise
    )
    others = [i for i in range(13) if i != 3]
    assert loss[0, 3].isnan()
    assert d_features[0, 3].isnan().all()
    assert torch.equal(loss[0, others], expected[0][0, others])
    assert torch.equal(d_features[0, others], expected[1][0, others])


def test_row_with_zero_upstream_contributes_nothing_even_if_nan():
    features, labels, prototypes, upstream = inputs()
    upstream[0, 3] = 0
    expected = with_gradients(prototype_loss, features, labels, prototypes, upstream, None, 0.1, True)
    features = features.detach().clone()
    features[0, 3] = torch.nan
    got = with_gradients(prototype_loss, features, labels, prototypes, upstream, None, 0.1, True)
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])


@pytest.mark.parametrize("groups", [1, 2])
def test_nan_prototype_outside_the_mask_is_not_read(groups):
    features, labels, prototypes, upstream = inputs(clients=2, groups=groups)
    mask = torch.tensor([[True, True, True, True, False], [True] * 5])
    labels = labels.clamp(max=3)
    expected = with_gradients(prototype_loss, features, labels, prototypes, upstream, mask, 0.1, True)
    prototypes = prototypes.detach().clone()
    prototypes[0, 4] = torch.nan
    got = with_gradients(prototype_loss, features, labels, prototypes, upstream, mask, 0.1, True)
    assert torch.equal(got[0][0], expected[0][0])
    assert torch.equal(got[1][0], expected[1][0])
    assert got[0][1].isnan().all() == (groups == 1)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_zero_vectors_have_cosine_zero_and_no_gradient(backend):
    features, labels, prototypes, upstream = inputs(classes=3)
    features, prototypes = features.detach().clone(), prototypes.detach().clone()
    features[0, 2] = 0
    prototypes[0, 1] = 0
    with use_backend(backend):
        loss, d_features, d_prototypes = with_gradients(
            prototype_loss, features, labels, prototypes, upstream, None, 0.1, True
        )
    assert loss[0, 2].item() == pytest.approx(np.log(3), rel=1e-6)
    assert torch.equal(d_features[0, 2], torch.zeros(7))
    assert torch.equal(d_prototypes[0, 1], torch.zeros(7))
    assert all(torch.isfinite(t).all() for t in (loss, d_features, d_prototypes))


def test_large_logits():
    features = torch.tensor([[[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]]], requires_grad=True)
    prototypes = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]], requires_grad=True)
    labels = torch.tensor([[0, 0, 2]])
    loss, d_features, _ = with_gradients(
        prototype_loss, features, labels, prototypes, torch.ones(1, 3), None, 1.0, False
    )
    torch.testing.assert_close(loss, torch.tensor([[np.log(2), 2e4, 0.0]], dtype=torch.float32))
    torch.testing.assert_close(d_features[0, 0], torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(d_features[0, 1], torch.tensor([-2.0, 0.0]))
    assert torch.isfinite(d_features).all()


def test_probability_next_to_one_in_bfloat16():
    # cos = 1 against 0 at temperature 1/12: p = 1 / (1 + e^-12), so p - 1 is far below bfloat16's step at 1.
    features = torch.eye(2, dtype=torch.bfloat16)[None].requires_grad_()
    prototypes = torch.eye(2, dtype=torch.bfloat16)[None]
    labels = torch.tensor([[0, 1]])
    loss = prototype_loss(features, labels, prototypes, None, 1 / 12, True)
    loss.sum().backward()
    rest = 1 / (1 + np.exp(12.0))
    assert loss.detach().numpy() == pytest.approx(np.log1p(np.exp(-12.0)), rel=1e-6)
    assert features.grad[0, 0, 1].item() == pytest.approx(12 * rest, rel=4e-3)
    assert features.grad[0, 0, 0].item() == 0


def test_prototype_gradient_is_not_added_in_low_precision():
    # 4096 equal terms: a bfloat16 sum would stop growing at 256 of them.
    features = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    prototypes = torch.tensor([[[0.0], [0.0]]], dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(1, 4096, dtype=torch.int64)
    prototype_loss(features, labels, prototypes, None, 1.0, False).sum().backward()
    assert torch.equal(prototypes.grad, torch.tensor([[[-2048.0], [2048.0]]], dtype=torch.bfloat16))


def test_gradcheck():
    features, labels, prototypes, _ = inputs(clients=2, rows=4, groups=2, dtype=torch.float64)
    labels[0, 1] = -100
    mask = torch.tensor([[True, True, False, True, True]])
    for normalise in (True, False):
        assert torch.autograd.gradcheck(
            lambda f, p, n=normalise: prototype_loss(f, labels, p, mask, 0.5, n), (features, prototypes)
        )


def test_reference_has_a_second_derivative_and_native_says_it_has_none():
    features, labels, prototypes, _ = inputs(rows=3, dims=3, classes=3, dtype=torch.float64)
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(
            lambda f, p: prototype_loss(f, labels, p, None, 0.5, True), (features, prototypes)
        )
    loss = prototype_loss(features, labels, prototypes, None, 0.5, True).sum()
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), features)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True, True, True]])])
def test_opcheck(mask):
    features, labels, prototypes, _ = inputs()
    labels = labels.clamp(min=2)
    torch.library.opcheck(
        torch.ops.mmfl_fast.prototype_loss.default, (features, labels, prototypes, mask, 0.1, True, False)
    )


def test_opcheck_of_the_backward():
    features, labels, prototypes, upstream = inputs()
    loss, log_sum = torch.ops.mmfl_fast.prototype_loss(features, labels, prototypes, None, 0.1, True, False)
    torch.library.opcheck(
        torch.ops.mmfl_fast.prototype_loss_backward.default,
        (
            upstream,
            loss.detach(),
            log_sum,
            features.detach(),
            labels,
            prototypes.detach(),
            None,
            0.1,
            True,
            False,
        ),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_empty_rows():
    features, labels, prototypes, upstream = inputs(rows=0)
    loss, d_features, d_prototypes = with_gradients(
        prototype_loss, features, labels, prototypes, upstream, None, 0.1, True
    )
    assert loss.shape == (1, 0)
    assert d_features.shape == (1, 0, 7)
    assert torch.equal(d_prototypes, torch.zeros(1, 5, 7))


def test_the_extension_refuses_bad_arguments(without_memory):
    good = {
        "features": torch.randn(1, 2, 3),
        "labels": torch.tensor([[0, 1]]),
        "prototypes": torch.randn(1, 4, 3),
        "class_mask": torch.ones(1, 4, dtype=torch.bool),
    }
    loss, log_sum, features, prototypes = (
        torch.ones(1, 2),
        torch.ones(1, 2),
        *map(torch.empty_like, (good["features"], good["prototypes"])),
    )

    def forward(loss=loss, **bad):
        _C.prototype_loss(*(good | bad).values(), 0.1, True, loss, log_sum, 1)

    def backward(feature_gradient=features, **bad):
        tensors = (good | bad).values()
        upstream = torch.ones(1, 2)
        _C.prototype_loss_backward(
            upstream, loss, log_sum, *tensors, 0.1, True, feature_gradient, prototypes, 1
        )

    forward()
    backward()
    for call in (forward, backward):
        for name, tensor in good.items():
            with pytest.raises(RuntimeError, match="null pointer"):
                call(**{name: without_memory(*tensor.shape, dtype=tensor.dtype)})
            with pytest.raises(RuntimeError, match="dtype"):
                call(**{name: tensor.int()})
            with pytest.raises(RuntimeError, match="size"):
                call(**{name: tensor[..., :1]})
    with pytest.raises(RuntimeError, match="null pointer"):
        forward(loss=without_memory(1, 2))
    with pytest.raises(RuntimeError, match="null pointer"):
        backward(feature_gradient=without_memory(1, 2, 3))


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_every_simd_level(level, level_environment):
    script = """
import torch
from mmfl_fast.kernels.prototype_loss import prototype_loss
g = torch.Generator().manual_seed(0)
features = torch.randn(2, 70, 37, generator=g, dtype=torch.float64)
prototypes = torch.randn(2, 21, 37, generator=g, dtype=torch.float64)
labels = torch.randint(0, 21, (2, 70), generator=g)
results = []
for dtype in (torch.float64, torch.float32):
    f, p = features.to(dtype).requires_grad_(), prototypes.to(dtype).requires_grad_()
    loss = prototype_loss(f, labels, p, None, 0.1, True)
    results.append((loss, *torch.autograd.grad(loss.square().sum(), (f, p))))
unit = torch.nn.functional.normalize
logits = unit(features, dim=-1) @ unit(prototypes, dim=-1).mT / 0.1
expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
torch.testing.assert_close(results[0][0].flatten(), expected)
for single, double in zip(results[1], results[0]):
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
for dtype in (torch.float64, torch.float32):
    f, p = features[..., :0].to(dtype), prototypes[..., :0].to(dtype)
    without_dims = prototype_loss(f, labels, p, None, 0.1, True)
    torch.testing.assert_close(without_dims, torch.full((2, 70), 21, dtype=dtype).log())
"""
    subprocess.run([sys.executable, "-c", script], env=level_environment(level), check=True)
