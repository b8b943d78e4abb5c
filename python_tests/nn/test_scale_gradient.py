import pytest
import torch

from mmfl_fast import nn


@pytest.mark.parametrize("factor", [-0.25, 0.0, torch.tensor([3.0, 0.5])])
def test_the_value_stays_and_the_gradient_is_scaled(factor):
    x = torch.tensor([1.5, -2.0], requires_grad=True)
    y = nn.scale_gradient(x, factor)
    assert torch.equal(x, y)
    upstream = torch.tensor([1.0, 8.0])
    (gradient,) = torch.autograd.grad((y * upstream).sum(), x)
    assert torch.equal(gradient, factor * upstream)
