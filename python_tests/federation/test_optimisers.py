import pytest
import torch

from mmfl_fast.federation import Sgd
from mmfl_fast.federation.optimisers import clip_gradients


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01), (0.0, 0.1)])
def test_sgd_steps_as_torch_does(momentum, weight_decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    gradients = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)

    expected = start.clone().requires_grad_()
    theirs = torch.optim.SGD([expected], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    actual = start.clone()
    ours = Sgd(0.1, momentum, weight_decay)
    slots = ours.slots([actual])
    for gradient in gradients:
        expected.grad = gradient.clone()
        theirs.step()
        ours.step([actual], [gradient], slots)
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-12, atol=1e-12)


def test_sgd_does_not_write_to_the_gradient():
    gradient = torch.ones(3)
    parameter = torch.ones(3)
    optimiser = Sgd(0.1, 0.9, 0.1)
    optimiser.step([parameter], [gradient], optimiser.slots([parameter]))
    assert torch.equal(gradient, torch.ones(3))


@pytest.mark.parametrize("largest_norm", [0.5, 10.0])
def test_clipping_is_that_of_torch(largest_norm):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in ((4, 3), (5,), ())]
    parameters = [torch.zeros_like(g).requires_grad_() for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest_norm)
    assert 0.5 < norm < 10.0
    for parameter, clipped in zip(parameters, clip_gradients(gradients, largest_norm), strict=True):
        torch.testing.assert_close(clipped, parameter.grad)


def test_a_gradient_that_is_short_enough_keeps_its_bits():
    gradients = [torch.full((3,), 0.1), torch.zeros(2)]
    assert all(torch.equal(a, b) for a, b in zip(clip_gradients(gradients, 1.0), gradients, strict=True))
    assert torch.equal(clip_gradients([torch.zeros(2)], 1.0)[0], torch.zeros(2))
