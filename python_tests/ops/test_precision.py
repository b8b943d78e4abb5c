"""``precision`` on every op that takes it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mmfl_fast as mf
from mmfl_fast.kernels import cross_gram_sq, gram, prototype_loss

OPS: dict[str, Callable[..., Tensor]] = {
    "gram": lambda **options: mf.ops.gram(torch.eye(3), **options),
    "pearson_similarity": lambda **options: mf.ops.pearson_similarity(torch.eye(3), **options),
    "cosine_similarity": lambda **options: mf.ops.cosine_similarity(torch.eye(3), **options),
    "angular_similarity": lambda **options: mf.ops.angular_similarity(torch.eye(3), **options),
    "pairwise_sq_distance": lambda **options: mf.ops.pairwise_sq_distance(torch.eye(3), **options),
    "linear_cka": lambda **options: mf.ops.linear_cka(torch.eye(3).expand(2, 3, 3), **options),
    "prototype_contrastive_loss": lambda **options: mf.ops.prototype_contrastive_loss(
        torch.eye(3), torch.arange(3), torch.eye(3), **options
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_a_cpu_computes_in_float32_for_both(name: str) -> None:
    assert torch.equal(OPS[name](precision="tf32"), OPS[name](precision="fp32"))


@pytest.mark.parametrize("name", OPS)
def test_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"precision must be \"fp32\" or \"tf32\"; got 'bf16'"):
        OPS[name](precision="bf16")


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("name", OPS)
def test_the_kernel_is_told(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for kernel in (gram.op, cross_gram_sq.op, prototype_loss.op):
        primitive = kernel.__name__.split(".")[-2]
        original = getattr(kernel, primitive)

        def spy(*arguments: object, original: Callable[..., object] = original) -> object:
            told.append(arguments[-1])
            return original(*arguments)

        monkeypatch.setattr(kernel, primitive, spy)
    OPS[name](precision=precision)
    assert told == [precision == "tf32"]
