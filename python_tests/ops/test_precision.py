"""``precision`` on every op that takes it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mmfl_fast as mf
from mmfl_fast.kernels import cross_gram_sq, gram, prototype_loss

OPS: dict[str, Callable[..., Tensor]] = {
    "gram": lambda x, **options: mf.ops.gram(x, **options),
    "pearson_similarity": lambda x, **options: mf.ops.pearson_similarity(x, **options),
    "cosine_similarity": lambda x, **options: mf.ops.cosine_similarity(x, **options),
    "angular_similarity": lambda x, **options: mf.ops.angular_similarity(x, **options),
    "pairwise_sq_distance": lambda x, **options: mf.ops.pairwise_sq_distance(x, **options),
    "linear_cka": lambda x, **options: mf.ops.linear_cka(x.expand(2, 3, 3), **options),
    "prototype_contrastive_loss": lambda x, **options: mf.ops.prototype_contrastive_loss(
        x, torch.arange(3), x, reduction="sum", **options
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_a_cpu_computes_in_float32_for_both(name: str) -> None:
    assert torch.equal(OPS[name](torch.eye(3), precision="tf32"), OPS[name](torch.eye(3), precision="fp32"))


@pytest.mark.parametrize("name", OPS)
def test_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"precision must be \"fp32\" or \"tf32\"; got 'bf16'"):
        OPS[name](torch.eye(3), precision="bf16")


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
    # What records no gradient may run in one step, past the op, and so does the mean loss.
    OPS[name](torch.eye(3, requires_grad=True), precision=precision)
    assert told == [precision == "tf32"]
