import pytest
import torch

from mmfl_fast import nn

A, RATE = 3.0, 0.1


def bowl(params):
    return A / 2 * params["w"].square().sum()


@pytest.mark.parametrize(
    ("second_order", "factor"), [(True, A * (1 - RATE * A) ** 2), (False, A * (1 - RATE * A))]
)
def test_worked_meta_gradient(second_order, factor):
    w = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    adapted = nn.inner_step(bowl, {"w": w}, RATE, second_order=second_order)
    torch.testing.assert_close(adapted["w"], (1 - RATE * A) * w)
    (gradient,) = torch.autograd.grad(bowl(adapted), w)
    torch.testing.assert_close(gradient, factor * w.detach())


@pytest.mark.parametrize("second_order", [True, False])
def test_a_rate_per_element_and_its_gradient(second_order):
    w = torch.tensor([2.0, -1.0], dtype=torch.float64)
    rate = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
    adapted = nn.inner_step(bowl, {"w": w}, {"w": rate}, second_order=second_order)
    torch.testing.assert_close(adapted["w"].detach(), (1 - rate.detach() * A) * w)
    (gradient,) = torch.autograd.grad(bowl(adapted), rate)
    torch.testing.assert_close(gradient, -A * adapted["w"].detach() * A * w)
