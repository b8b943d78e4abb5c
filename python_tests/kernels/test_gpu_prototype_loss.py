"""prototype_loss on a GPU, by CUDA and by Triton: against float64, and what only a GPU can get wrong."""

from __future__ import annotations

import gc
import importlib.util
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfl_fast import _C
from mmfl_fast.kernels.cuda_place import cuda_place
from mmfl_fast.kernels.prototype_loss import prototype_loss

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("nan_in_fresh_memory", "gpu_kernels")]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
COMPILER = tuple(map(int, version("triton").split(".")[:2])) if importlib.util.find_spec("triton") else (0, 0)
# Around the tiles (64 rows, 64 or 32 classes), the slabs (16, 32 or 64 dimensions) and the passes (64 or
# 128), then several splits of each side, then blocks with more weights than they keep at a time.
SHAPES = [
    (1, 1, 1),
    (2, 15, 2),
    (63, 64, 65),
    (65, 129, 33),
    (131, 257, 16),
    (64, 384, 1000),
    (5000, 40, 10),
    (9000, 160, 200),
]


@pytest.fixture(autouse=True)
def _float64_needs_a_newer_triton(request: pytest.FixtureRequest, gpu_kernels: str) -> None:
    doubles = request.node.callspec.params.get("dtype") == torch.float64 or "gradcheck" in request.node.name
    if doubles and gpu_kernels == "triton" and COMPILER < (3, 9):
        pytest.xfail("Triton 3.6 crashes while it compiles float64, so it is refused before 3.9")


def inputs(
    clients: int = 1,
    rows: int = 13,
    dims: int = 7,
    classes: int = 5,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features = torch.randn(clients, rows, dims).to("cuda", dtype)
    labels = torch.randint(0, classes, (clients, rows), device="cuda")
    prototypes = torch.randn(groups, classes, dims).to("cuda", dtype)
    upstream = torch.randn(clients, rows, dtype=torch.float64)
    return features, labels, prototypes, upstream.to("cuda", torch.promote_types(dtype, torch.float32))


def expression(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.1,
    normalise: bool = True,
) -> Tensor:
    if normalise:
        features, prototypes = (torch.nn.functional.normalize(x, dim=-1) for x in (features, prototypes))
    logits = features @ prototypes.mT / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return loss.view(labels.shape)


def with_gradients(
    function: Any, features: Tensor, labels: Tensor, prototypes: Tensor, upstream: Tensor, *options: Any
) -> list[Tensor]:
    features, prototypes = features.detach().requires_grad_(), prototypes.detach().requires_grad_()
    loss = function(features, labels, prototypes, *options)
    gradients = torch.autograd.grad(loss, (features, prototypes), upstream.to(loss.dtype))
    return [loss.detach(), *gradients]


def run(*arguments: Any) -> list[Tensor]:
    return with_gradients(prototype_loss, *arguments)


def assert_right(
    features: Tensor, labels: Tensor, prototypes: Tensor, upstream: Tensor, *options: Any, check: Any
) -> None:
    ours = run(features, labels, prototypes, upstream, *options)
    plain = with_gradients(expression, features, labels, prototypes, upstream, *options)
    exact = with_gradients(
        expression, features.double(), labels, prototypes.double(), upstream.double(), *options
    )
    for got, torch_value, truth in zip(ours, plain, exact, strict=True):
        assert got.is_cuda
        double = got.dtype == torch.float64
        check(got, torch_value, truth, 1e-13 if double else torch.finfo(got.dtype).eps + 2e-6)


def assert_same(got: Tensor, expected: Tensor, kernels: str) -> None:
    """To the last bit; Triton's compiler orders some sums by the strides that it knows."""
    tolerance = 0.0 if kernels == "native" else torch.finfo(got.dtype).eps + 2e-6
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "dims", "classes"), SHAPES)
def test_values_and_gradients(
    rows: int, dims: int, classes: int, dtype: torch.dtype, assert_accurate: Any
) -> None:
    arguments = inputs(rows=rows, dims=dims, classes=classes, dtype=dtype)
    assert_right(*arguments, None, 0.1, True, check=assert_accurate)
    assert_right(*arguments, None, 9.0, False, check=assert_accurate)


@pytest.mark.parametrize("groups", [1, 30])
@pytest.mark.parametrize("masks", [1, 30])
def test_clients_and_masks(groups: int, masks: int, assert_accurate: Any) -> None:
    features, labels, prototypes, upstream = inputs(30, rows=70, classes=11, groups=groups)
    mask = torch.rand(masks, 11, device="cuda") < 0.5
    mask[:, 2] = True
    labels = torch.where(mask.expand(30, 11).gather(1, labels), labels, 2)
    assert_right(features, labels, prototypes, upstream, mask, 0.1, True, check=assert_accurate)


def test_tf32_is_less_accurate_and_no_more() -> None:
    features, labels, prototypes, upstream = inputs(rows=300, dims=256, classes=100)
    exact = with_gradients(expression, features.double(), labels, prototypes.double(), upstream)
    ours = run(features, labels, prototypes, upstream, None, 0.1, True, True)
    for got, truth in zip(ours, exact, strict=True):
        error = (got - truth).abs().max() / truth.abs().max()
        assert 1e-6 < error < 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_change_the_result(dtype: torch.dtype, gpu_kernels: str) -> None:
    features, labels, prototypes, upstream = inputs(3, rows=70, dims=40, groups=3, dtype=dtype)
    expected = run(features, labels, prototypes, upstream, None, 0.1, True)
    for axes in ((0, 2), (0, 1), (1, 2)):
        strided = [x.transpose(*axes).contiguous().transpose(*axes) for x in (features, prototypes)]
        got = run(strided[0], labels.mT.contiguous().mT, strided[1], upstream, None, 0.1, True)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b, gpu_kernels)
    larger = torch.full((3, 70, 83), torch.nan, dtype=dtype, device="cuda")[..., 1:81:2].copy_(features)
    for a, b in zip(run(larger, labels, prototypes, upstream, None, 0.1, True), expected, strict=True):
        assert_same(a, b, gpu_kernels)


def test_expanded_inputs_and_upstream(gpu_kernels: str) -> None:
    features, labels, prototypes, _ = inputs(rows=6)
    upstream = torch.full((), 0.7, device="cuda").expand(4, 6)
    expanded = features.expand(4, 6, 7), labels.expand(4, 6), prototypes.expand(4, 5, 7)
    whole = [tensor.contiguous() for tensor in expanded]
    got = run(*expanded, upstream, None, 0.1, True)
    for a, b in zip(got, run(*whole, upstream.contiguous(), None, 0.1, True), strict=True):
        assert_same(a, b, gpu_kernels)


def test_backward_twice_adds() -> None:
    features, labels, prototypes, upstream = inputs(rows=200)
    features.requires_grad_()
    prototypes.requires_grad_()
    loss = prototype_loss(features, labels, prototypes, None, 0.1, True)
    loss.backward(upstream, retain_graph=True)
    first = [leaf.grad.clone() for leaf in (features, prototypes) if leaf.grad is not None]
    loss.backward(upstream)
    for leaf, once in zip((features, prototypes), first, strict=True):
        assert torch.equal(leaf.grad, 2 * once)


def test_rows_that_take_no_part() -> None:
    features, labels, prototypes, upstream = inputs(rows=8)
    kept = [3, 4, 7]
    mask = torch.tensor([[True, False, True, True, True]], device="cuda")
    labels = torch.tensor([[-100, 1, 2, 0, 3, 5, 1 << 40, 4]], device="cuda")
    upstream[0, 2] = 0
    features[0, [0, 1, 2, 5, 6]] = torch.nan
    loss, d_features, d_prototypes = run(features, labels, prototypes, upstream, mask, 0.1, True)
    exact = with_gradients(
        expression, features[:, kept].double(), labels[:, kept], prototypes.double(), upstream[:, kept], mask
    )
    assert (loss[0, :2] == 0).all()
    assert loss[0, [2, 5, 6]].isnan().all()
    assert (d_features[0, [0, 1, 2, 5, 6]] == 0).all()
    for got, truth in zip((loss[:, kept], d_features[:, kept], d_prototypes), exact, strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-5)


def test_all_rows_ignored() -> None:
    features, labels, prototypes, upstream = inputs(rows=300)
    for result in run(features, labels.fill_(-100), prototypes, upstream, None, 0.1, True):
        assert (result == 0).all()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_spoils_only_itself(value: float, normalise: bool) -> None:
    features, labels, prototypes, upstream = inputs(clients=2, groups=2)
    expected = run(features, labels, prototypes, upstream, None, 0.1, normalise)
    features[0, 3, 2] = value
    got = run(features, labels, prototypes, upstream, None, 0.1, normalise)
    others = [i for i in range(13) if i != 3]
    assert got[0][0, 3].isnan()
    assert got[1][0, 3].isnan().all()
    assert got[2][0].isnan().all()
    assert torch.equal(got[0][0, others], expected[0][0, others])
    assert torch.equal(got[1][0, others], expected[1][0, others])
    assert torch.equal(got[2][1], expected[2][1])


def test_large_logits() -> None:
    features = torch.tensor([[[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]]], device="cuda")
    prototypes = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]], device="cuda")
    labels = torch.tensor([[0, 0, 2]], device="cuda")
    loss, d_features, _ = run(features, labels, prototypes, torch.ones(1, 3, device="cuda"), None, 1.0, False)
    torch.testing.assert_close(loss.cpu(), torch.tensor([[np.log(2), 2e4, 0.0]], dtype=torch.float32))
    expected = torch.tensor([[0.0, 0.5], [-2.0, 0.0]])
    torch.testing.assert_close(d_features[0, :2].cpu(), expected)


def test_probability_next_to_one_in_bfloat16() -> None:
    eye = torch.eye(2, dtype=torch.bfloat16, device="cuda")[None]
    labels = torch.tensor([[0, 1]], device="cuda")
    loss, d_features, _ = run(eye, labels, eye, torch.ones(1, 2, device="cuda"), None, 1 / 12, True)
    assert loss.cpu().numpy() == pytest.approx(np.log1p(np.exp(-12.0)), rel=3e-6)
    assert d_features[0, 0, 1].item() == pytest.approx(12 / (1 + np.exp(12.0)), rel=4e-3)
    assert d_features[0, 0, 0].item() == 0


def test_prototype_gradient_is_not_added_in_low_precision() -> None:
    features = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device="cuda")
    prototypes = torch.zeros(1, 2, 1, dtype=torch.bfloat16, device="cuda")
    labels = torch.zeros(1, 4096, dtype=torch.int64, device="cuda")
    upstream = torch.ones(1, 4096, device="cuda")
    gradient = run(features, labels, prototypes, upstream, None, 1.0, False)[2]
    assert gradient.flatten().tolist() == [-2048.0, 2048.0]


@pytest.mark.parametrize(("clients", "groups", "rows"), [(1, 1, 3000), (40, 40, 64), (40, 1, 64)])
def test_same_bits_on_every_run_and_stream(clients: int, groups: int, rows: int) -> None:
    arguments = inputs(clients, rows=rows, dims=200, classes=150, groups=groups)
    first, second = (run(*arguments, None, 0.1, True) for _ in range(2))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        third = run(*arguments, None, 0.1, True)
    torch.cuda.synchronize()
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_graph_can_hold_it() -> None:
    features, labels, prototypes, upstream = inputs(rows=300, dims=150, classes=70)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(features, labels, prototypes, upstream, None, 0.1, True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(features, labels, prototypes, upstream, None, 0.1, True)
    features.copy_(torch.randn_like(features))
    labels.random_(70)
    # Twice: the counters of the first run must not be what the second finds.
    graph.replay()
    graph.replay()
    expected = run(features, labels, prototypes, upstream, None, 0.1, True)
    for ours, plain in zip(captured, expected, strict=True):
        assert torch.equal(ours, plain)


def test_temporaries_may_go_before_the_kernel_runs() -> None:
    features, labels, prototypes, upstream = inputs(rows=2000, dims=128, classes=100)
    expected = run(features, labels, prototypes, upstream, None, 0.1, True)
    # Keeps the stream busy until long after the call has returned.
    torch.cuda._sleep(100_000_000)
    got = run(features.clone(), labels.clone(), prototypes.clone(), upstream.clone(), None, 0.1, True)
    gc.collect()
    garbage = [torch.full((2000, 128), torch.nan, device="cuda") for _ in range(8)]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert len(garbage) == 8


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = inputs(rows=100)
    there = [tensor.to("cuda:1") for tensor in arguments]
    for a, b in zip(run(*arguments, None, 0.1, True), run(*there, None, 0.1, True), strict=True):
        assert b.device == there[0].device
        assert torch.equal(a.cpu(), b.cpu())
    assert torch.cuda.current_device() == 0


def test_no_rows() -> None:
    loss, d_features, d_prototypes = run(*inputs(rows=0), None, 0.1, True)
    assert loss.shape == (1, 0)
    assert d_features.shape == (1, 0, 7)
    assert (d_prototypes == 0).all()


def test_more_than_2_to_the_31_elements() -> None:
    rows, dims = (1 << 25) + 3, 64
    features = torch.randn(rows, dims, dtype=torch.bfloat16, device="cuda")[None].requires_grad_()
    labels = torch.randint(0, 4, (1, rows), device="cuda")
    prototypes = torch.randn(1, 4, dims, dtype=torch.bfloat16, device="cuda")
    loss = prototype_loss(features, labels, prototypes, None, 0.1, True)
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    end = features.detach()[:, -100:], labels[:, -100:], prototypes
    expected = run(*end, torch.ones(1, 100, device="cuda"), None, 0.1, True)
    assert torch.equal(loss.detach()[:, -100:], expected[0])
    torch.testing.assert_close(gradient[:, -100:], expected[1], rtol=1e-2, atol=1e-4)


def test_gradcheck() -> None:
    features, labels, prototypes, _ = inputs(2, rows=4, groups=2, dtype=torch.float64)
    labels[0, 1] = -100
    mask = torch.tensor([[True, True, False, True, True]], device="cuda")
    for normalise in (True, False):
        assert torch.autograd.gradcheck(
            lambda f, p, n=normalise: prototype_loss(f, labels, p, mask, 0.5, n),
            (features.requires_grad_(), prototypes.requires_grad_()),
        )


def test_opcheck() -> None:
    features, labels, prototypes, _ = inputs()
    torch.library.opcheck(
        torch.ops.mmfl_fast.prototype_loss.default,
        (features.requires_grad_(), labels, prototypes.requires_grad_(), None, 0.1, True, False),
    )


def test_null_pointers_are_refused(without_memory: Any) -> None:
    features, labels = without_memory(1, 2, 3, device="cuda"), torch.zeros(1, 2, dtype=torch.int64).cuda()
    prototypes, loss = torch.randn(1, 4, 3).cuda(), torch.empty(1, 2).cuda()
    place = cuda_place(loss.device)
    with pytest.raises(RuntimeError, match="null pointer"):
        _C.prototype_loss_cuda(features, labels, prototypes, None, 0.1, True, False, loss, loss, *place)
