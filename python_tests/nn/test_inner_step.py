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


def uneven(params):
    return (params["w"] ** 4).sum() + (params["w"] * params["v"]).sum() + 0.0 * params["unused"].sum()


@pytest.fixture
def start():
    return {
        "w": torch.tensor([0.7, -1.1], dtype=torch.float64),
        "v": torch.tensor([0.3, 0.9], dtype=torch.float64),
        "unused": torch.tensor([1.0], dtype=torch.float64),
    }


def test_inner_adam_steps_as_torch_does(start):
    leaves = {n: t.clone().requires_grad_() for n, t in start.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=RATE)
    for _ in range(4):
        optimiser.zero_grad()
        uneven(leaves).backward()
        optimiser.step()
    for second_order in (True, False):
        adapted = nn.inner_adam(uneven, start, RATE, 4, second_order=second_order)
        for name, leaf in leaves.items():
            torch.testing.assert_close(adapted[name], leaf.detach())


def test_the_meta_gradient_through_inner_adam(start):
    def outer(w, v):
        adapted = nn.inner_adam(uneven, {**start, "w": w, "v": v}, RATE, 3, second_order=True)
        return (adapted["w"] * adapted["v"]).sum() + adapted["w"].square().sum()

    leaves = [start[n].clone().requires_grad_() for n in ("w", "v")]
    assert torch.autograd.gradcheck(outer, leaves, atol=1e-6)
    first = nn.inner_adam(uneven, {**start, "w": leaves[0]}, RATE, 3, second_order=False)
    (gradient,) = torch.autograd.grad(first["w"].sum(), leaves[0])
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_a_parameter_without_gradient_stays_and_spoils_nothing(start):
    leaf = start["unused"].clone().requires_grad_()
    adapted = nn.inner_adam(uneven, {**start, "unused": leaf}, RATE, 2, second_order=True)
    assert torch.equal(adapted["unused"], start["unused"])
    (gradient,) = torch.autograd.grad(sum(t.sum() for t in adapted.values()), leaf)
    assert torch.equal(gradient, torch.ones_like(leaf))
