"""The bodies of the CUDA kernels of prototype_loss, run on the CPU under AddressSanitizer and UBSan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Run = Callable[..., Any]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def run(compile_kernels: Any) -> Run:
    program: Run = compile_kernels("prototype_loss", sanitized=True)
    return program


def inputs(
    clients: int = 1,
    rows: int = 13,
    dims: int = 7,
    classes: int = 5,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features = torch.randn(clients, rows, dims).to(dtype)
    labels = torch.randint(0, classes, (clients, rows))
    prototypes = torch.randn(groups, classes, dims).to(dtype)
    upstream = torch.randn(clients, rows, dtype=torch.float64)
    return features, labels, prototypes, upstream if dtype == torch.float64 else upstream.float()


def emulated(
    run: Run,
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    upstream: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.3,
    normalise: bool = True,
    tf32: bool = False,
    backward: bool = False,
    blocks: int = 264,
) -> list[Tensor]:
    """Loss, log-sum and the gradients of features and prototypes, all float64."""
    sizes = (*features.shape, prototypes.shape[1], prototypes.shape[0], 0 if mask is None else len(mask))
    in_double = torch.float64 in (features.dtype, prototypes.dtype)
    flags = (normalise, in_double, tf32)
    result = run(backward, blocks, *sizes, *flags, temperature, features, labels, prototypes, mask, upstream)
    shapes = [labels.shape, labels.shape, features.shape, prototypes.shape]
    parts = torch.from_numpy(result.copy()).split([shape.numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def exact(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    upstream: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.3,
    normalise: bool = True,
) -> list[Tensor]:
    leaves = [tensor.double().requires_grad_() for tensor in (features, prototypes)]
    f, p = (torch.nn.functional.normalize(x, dim=-1) for x in leaves) if normalise else leaves
    logits = f @ p.mT / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    log_sum = (logits - logits.amax(dim=-1, keepdim=True)).logsumexp(dim=-1).detach()
    loss = loss.view(labels.shape)
    return [loss.detach(), log_sum, *torch.autograd.grad(loss, leaves, upstream.double())]


def assert_close(ours: list[Tensor], truth: list[Tensor], arithmetic: float, stored: float = 0) -> None:
    for i, (got, wanted) in enumerate(zip(ours, truth, strict=True)):
        scale = float(wanted.abs().max()) if wanted.numel() > 0 else 0.0
        tolerance = arithmetic + (stored if i > 1 else 0)
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * max(scale, 1e-3))


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Of the arithmetic, and of what is stored."""
    if dtype == torch.float64:
        return 1e-13, 0
    # The weights meet 16-bit elements as one tf32 number.
    return (2e-6, 0) if dtype == torch.float32 else (2e-6, 5e-4 + torch.finfo(dtype).eps)


# Around the tiles (64 rows, 64 or 32 classes), slabs (16, 32 or 64 dimensions) and passes (64 or 128).
@pytest.mark.parametrize(
    ("rows", "dims", "classes"), [(1, 1, 1), (5, 16, 2), (65, 33, 9), (9, 130, 70), (17, 65, 64)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(rows: int, dims: int, classes: int, dtype: torch.dtype, run: Run) -> None:
    arguments = inputs(rows=rows, dims=dims, classes=classes, dtype=dtype)
    options = {"normalise": False, "temperature": 9.0} if dims == 33 else {}
    ours = emulated(run, *arguments, **options)
    assert_close(ours, exact(*arguments, **options), *tolerances(dtype))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("masks", [1, 3])
def test_clients_and_masks(groups: int, masks: int, run: Run) -> None:
    features, labels, prototypes, upstream = inputs(clients=3, rows=25, classes=11, groups=groups)
    mask = torch.rand(masks, 11) < 0.5
    mask[:, 2] = True
    labels = torch.where(mask.expand(3, 11).gather(1, labels), labels, 2)
    arguments = features, labels, prototypes, upstream, mask
    assert_close(emulated(run, *arguments), exact(*arguments), 2e-6)


def test_mixed_dtypes(run: Run) -> None:
    features, labels, prototypes, upstream = inputs(rows=20, dims=40)
    arguments = features.bfloat16(), labels, prototypes, upstream
    assert_close(emulated(run, *arguments), exact(*arguments), 2e-6, torch.finfo(torch.bfloat16).eps)
    arguments = features.half(), labels, prototypes.double(), upstream.double()
    assert_close(emulated(run, *arguments), exact(*arguments), 1e-13, torch.finfo(torch.float16).eps)


def test_tf32_rounds_factors(run: Run) -> None:
    arguments = inputs(rows=20, dims=40)
    truth = exact(*arguments)
    assert_close(emulated(run, *arguments, tf32=True), truth, 5e-3)
    with pytest.raises(AssertionError):
        assert_close(emulated(run, *arguments, tf32=True), truth, 1e-5)


@pytest.mark.parametrize("form", ["sliced", "transposed", "clients inside", "misaligned", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_do_not_change_a_bit(form: str, dtype: torch.dtype, run: Run) -> None:
    features, labels, prototypes, upstream = inputs(3, rows=11, dims=24, groups=3, dtype=dtype)

    def arranged(tensor: Tensor) -> Tensor:
        if form == "transposed":
            return tensor.mT.contiguous().mT
        if form == "clients inside":
            return tensor.transpose(0, 1).contiguous().transpose(0, 1)
        if form == "misaligned":
            return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
        larger = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)
        return larger[..., ::2].copy_(tensor)

    if form == "expanded":
        features, prototypes = (x[:1].expand(x.shape) for x in (features, prototypes))
        labels, upstream = labels[:1].expand(3, 11), upstream[0, 0].expand(3, 11)
        whole = [x.contiguous() for x in (features, labels, prototypes, upstream)]
        strided = [features, labels, prototypes, upstream]
    else:
        whole = [features, labels, prototypes, upstream]
        strided = [arranged(features), labels.mT.contiguous().mT, arranged(prototypes), upstream]
    for got, wanted in zip(emulated(run, *strided), emulated(run, *whole), strict=True):
        assert torch.equal(got, wanted)


def test_rows_that_take_no_part(run: Run) -> None:
    features, labels, prototypes, upstream = inputs(rows=8)
    kept = [3, 4, 7]
    mask = torch.tensor([[True, False, True, True, True]])
    # Ignored; of a class the mask leaves out; with an upstream gradient of 0; bad labels.
    labels = torch.tensor([[-100, 1, 2, 0, 3, 5, -1, 4]])
    upstream[0, 2] = 0
    features[0, [0, 1, 2, 5, 6]] = torch.nan
    prototypes[0, 1] = torch.inf
    loss, log_sum, d_features, d_prototypes = emulated(run, features, labels, prototypes, upstream, mask)
    finite = prototypes.nan_to_num(posinf=1.0)
    truth = exact(features[:, kept], labels[:, kept], finite, upstream[:, kept], mask)
    assert_close([loss[:, kept], log_sum[:, kept], d_features[:, kept], d_prototypes], truth, 2e-6)
    assert (loss[0, :2] == 0).all()
    assert (log_sum[0, :2] == 0).all()
    assert loss[0, [2, 5, 6]].isnan().all()
    assert (d_features[0, [0, 1, 2, 5, 6]] == 0).all()
    assert (d_prototypes[0, 1] == 0).all()


def test_all_rows_ignored(run: Run) -> None:
    features, labels, prototypes, upstream = inputs(rows=70)
    for result in emulated(run, features, labels.fill_(-100), prototypes, upstream):
        assert (result == 0).all()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("normalise", [True, False])
def test_what_is_not_finite_stays_where_it_is(normalise: bool, value: float, run: Run) -> None:
    features, labels, prototypes, upstream = inputs(clients=2, groups=2)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 4] = False
    labels[1].clamp_(max=3)
    arguments = labels, prototypes, upstream, mask
    expected = emulated(run, features, *arguments, normalise=normalise)
    features[0, 3, 2] = value
    prototypes[1, 4, 0] = value
    loss, _, d_features, d_prototypes = emulated(run, features, *arguments, normalise=normalise)
    others = [i for i in range(13) if i != 3]
    assert loss[0, 3].isnan()
    assert d_features[0, 3].isnan().all()
    assert d_prototypes[0].isnan().all()
    assert torch.equal(loss[0, others], expected[0][0, others])
    assert torch.equal(d_features[0, others], expected[2][0, others])
    for got, wanted in ((loss, expected[0]), (d_features, expected[2]), (d_prototypes, expected[3])):
        assert torch.equal(got[1], wanted[1])


def test_vectors_of_length_zero(run: Run) -> None:
    features, labels, prototypes, upstream = inputs(classes=3)
    features[0, 2] = 0
    prototypes[0, 1] = 0
    loss, _, d_features, d_prototypes = emulated(run, features, labels, prototypes, upstream)
    assert loss[0, 2].item() == pytest.approx(np.log(3), rel=1e-6)
    assert (d_features[0, 2] == 0).all()
    assert (d_prototypes[0, 1] == 0).all()
    assert all(tensor.isfinite().all() for tensor in (loss, d_features, d_prototypes))


def test_large_logits(run: Run) -> None:
    features = torch.tensor([[[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]]])
    prototypes = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]])
    labels = torch.tensor([[0, 0, 2]])
    loss, _, d_features, _ = emulated(
        run, features, labels, prototypes, torch.ones(1, 3), temperature=1.0, normalise=False
    )
    torch.testing.assert_close(loss, torch.tensor([[np.log(2), 2e4, 0.0]]), rtol=1e-7, atol=0)
    torch.testing.assert_close(d_features[0, 0], torch.tensor([0.0, 0.5]).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(d_features[0, 1], torch.tensor([-2.0, 0.0]).double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probability_next_to_one(dtype: torch.dtype, run: Run) -> None:
    eye = torch.eye(2, dtype=dtype)[None]
    upstream = torch.ones(1, 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    loss, _, d_features, _ = emulated(run, eye, torch.tensor([[0, 1]]), eye, upstream, temperature=1 / 12)
    assert loss.numpy() == pytest.approx(np.log1p(np.exp(-12.0)), rel=1e-6)
    assert d_features[0, 0, 1].item() == pytest.approx(12 / (1 + np.exp(12.0)), rel=4e-3)
    assert d_features[0, 0, 0].item() == 0


def test_no_rows(run: Run) -> None:
    results = emulated(run, *inputs(rows=0))
    assert (results[3] == 0).all()


def test_the_order_of_threads_and_blocks_changes_no_bit(run: Run) -> None:
    arguments = inputs(rows=66, dims=33, classes=66)
    for a, b in zip(emulated(run, *arguments), emulated(run, *arguments, backward=True), strict=True):
        assert torch.equal(a, b)


def test_many_tiles_in_one_block(run: Run) -> None:
    # Five tiles of classes, each of one slab; then as many of rows.
    for rows, classes in ((35, 260), (260, 35)):
        arguments = inputs(rows=rows, dims=3, classes=classes)
        ours = emulated(run, *arguments, blocks=1)
        assert_close(ours, exact(*arguments), 4e-6)
        for a, b in zip(ours, emulated(run, *arguments, blocks=1, backward=True), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("blocks", [1, 4, 12])
def test_many_dimensions_in_one_block(blocks: int, dtype: torch.dtype, run: Run) -> None:
    # Two passes over the dimensions, the second one short, of two runs of weights or more; then these in two
    # splits; then in as many as there are tiles, with the dimensions in chunks.
    arguments = inputs(rows=9, dims=150 if dtype == torch.bfloat16 else 70, classes=130, dtype=dtype)
    ours = emulated(run, *arguments, blocks=blocks)
    assert_close(ours, exact(*arguments), *tolerances(dtype))
    for a, b in zip(ours, emulated(run, *arguments, blocks=blocks, backward=True), strict=True):
        assert torch.equal(a, b)


def test_a_missing_barrier_is_seen(compile_kernels: Any, launches_with_barriers: Any) -> None:
    arguments = inputs(rows=20, dims=40, classes=70)
    program = compile_kernels("prototype_loss", sanitized=False)
    # The forward in splits and the backward; not the join between them, nor what describes rows.
    assert launches_with_barriers(program, lambda run: emulated(run, *arguments), 4) == [0, 3]
