"""Forward-mode derivatives: of the plain expressions, never a tangent that is dropped."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import mmfl_fast as mf

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram": lambda x: mf.ops.gram(x, origin="mean"),
    "weighted_mean": lambda x: mf.ops.weighted_mean(x, [1.0, 2.0, 3.0]),
    "linear_cka": lambda x: mf.ops.linear_cka(torch.stack([x, x.flip(0) ** 2])),
    "prototype_contrastive_loss": lambda x: mf.ops.prototype_contrastive_loss(x, torch.arange(3), x.flip(0)),
}

# Raised by torch about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*script.*is deprecated:DeprecationWarning")


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_agrees_with_reverse_mode(name: str) -> None:
    x, direction = torch.randn(2, 3, 5, dtype=torch.float64)
    _, forward = torch.func.jvp(OPS[name], (x,), (direction,))
    torch.testing.assert_close(forward, torch.func.jacrev(OPS[name])(x).flatten(-2) @ direction.flatten())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(OPS[name](forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, forward)


@pytest.mark.parametrize("name", OPS)
def test_a_kernel_asked_for_by_name_refuses(name: str) -> None:
    x = torch.randn(3, 5)
    with (
        mf.use_backend("native"),
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="'native' has no forward-mode derivatives"),
    ):
        OPS[name](forward_ad.make_dual(x, torch.ones_like(x)))
