import pytest
import torch

from mmfl_fast.federation import Adam, Sgd
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


@pytest.mark.parametrize(("weight_decay", "period"), [(0.0, None), (0.1, None), (0.1, 3)])
def test_adam_steps_as_torch_does(weight_decay, period):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4,), (), (2, 4, 3), (4, 5)]
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    expected = [t.clone().requires_grad_() for t in start]
    theirs = torch.optim.AdamW(expected, lr=0.1, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, period) if period else None
    actual = [t.clone() for t in start]
    ours = Adam(0.1, weight_decay=weight_decay, cosine_period=period)
    slots = ours.slots(actual)
    for _ in range(8):
        gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for tensor, gradient in zip(expected, gradients, strict=True):
            tensor.grad = gradient.clone()
        theirs.step()
        if schedule is not None:
            schedule.step()
        ours.step(actual, gradients, slots)
    for found, tensor in zip(actual, expected, strict=True):
        torch.testing.assert_close(found, tensor.detach(), rtol=1e-12, atol=1e-12)


def test_adam_counts_the_steps_of_each_client_of_a_stack():
    optimiser, start = Adam(0.1), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    stack = start.clone()
    slots = optimiser.slots([stack])
    optimiser.step([stack], [torch.ones(2, 2)], slots)
    # The second client has no row left.
    optimiser.step([stack[:1]], [torch.full((1, 2), 3.0)], [[s[:1] for s in slot] for slot in slots])
    optimiser.step([stack], [torch.ones(2, 2)], slots)
    for row, gradients in enumerate([(1.0, 3.0, 1.0), (1.0, 1.0)]):
        alone = start[row].clone()
        own = optimiser.slots([alone])
        for gradient in gradients:
            optimiser.step([alone], [torch.full((2,), gradient)], own)
        torch.testing.assert_close(stack[row], alone)


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
