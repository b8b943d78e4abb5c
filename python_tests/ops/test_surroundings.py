"""Every op gives the same inside the modes and transforms of torch that a caller may have switched on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmfl_fast import ops
from mmfl_fast.kernels.backend import use_backend

BACKENDS = ["native", "reference"]
LABELS = [0, 2, 1, 2, 0]

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram": lambda x: ops.gram(x, origin="mean"),
    "pearson_similarity": ops.pearson_similarity,
    "angular_similarity": ops.angular_similarity,
    "pairwise_sq_distance": ops.pairwise_sq_distance,
    "subspace_distance": lambda x: ops.subspace_distance(x.unflatten(1, (6, 5))),
    "consensus_matrix": lambda x: ops.consensus_matrix(x, torch.arange(1.0, 6.0)),
    "linear_cka": lambda x: ops.linear_cka(x.unflatten(1, (6, 5))),
    "debiased linear_cka": lambda x: ops.linear_cka(list(x.unflatten(1, (6, 5))), debiased=True),
    "class_prototypes": lambda x: ops.class_prototypes(x, labels(x), 4)[0],
    "prototype_contrastive_loss": lambda x: ops.prototype_contrastive_loss(x, labels(x), x[:3]),
    "weighted_mean": lambda x: ops.weighted_mean(x, x[:, 0].exp()),
    "mix": lambda x: ops.mix(x, x[:, :5]),
}

every_op = pytest.mark.parametrize("name", OPS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def labels(x: Tensor) -> Tensor:
    return torch.tensor(LABELS, device=x.device)


def rows() -> Tensor:
    return torch.randn(5, 30)


@every_backend
@every_op
def test_autocast_changes_nothing(name: str, backend: str) -> None:
    x = rows().requires_grad_()
    with use_backend(backend):
        plain = OPS[name](x)
        with torch.autocast("cpu", torch.bfloat16):
            result = OPS[name](x)
    assert torch.equal(result, plain)


@every_op
def test_autocast_changes_no_gradient_of_a_native_kernel(name: str) -> None:
    x = rows()
    gradient = torch.func.grad(lambda x: OPS[name](x).square().sum())
    plain = gradient(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(x), plain)


@every_backend
@every_op
def test_tensors_without_values(name: str, backend: str) -> None:
    x = rows()
    mode = FakeTensorMode()
    with use_backend(backend):
        expected = OPS[name](x)
        meta = OPS[name](x.to("meta"))
        with mode:
            fake = OPS[name](mode.from_tensor(x))
    for result in (meta, fake):
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


@every_op
def test_negated_views(name: str) -> None:
    x = rows()
    negated = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert negated.is_neg()
    # They do not run in one step, so the last bit may differ.
    torch.testing.assert_close(OPS[name](negated), OPS[name](x))


@every_op
def test_default_dtype_and_inference_mode(name: str) -> None:
    x = rows()
    expected = OPS[name](x)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(OPS[name](x), expected)
    finally:
        torch.set_default_dtype(previous)
    with torch.inference_mode():
        assert torch.equal(OPS[name](x.clone()), expected)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["pearson_similarity", "linear_cka", "prototype_contrastive_loss", "mix"])
def test_transforms_inside_compile(name: str) -> None:
    x = torch.randn(2, 5, 30)
    gradient = torch.func.grad(lambda x: OPS[name](x).square().sum())
    torch.compiler.reset()
    for function, argument in ((gradient, x[0]), (torch.func.vmap(gradient), x)):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(argument), function(argument), rtol=1e-4, atol=1e-4)
