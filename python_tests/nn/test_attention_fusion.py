import pytest
import torch

from mmfl_fast import nn

WIDTH, HIDDEN, HEADS = 4, 5, 3
LENGTHS = (2, 1, 3)


@pytest.fixture
def params():
    params = nn.init_attention_fusion("a", WIDTH, HIDDEN, HEADS, torch.Generator().manual_seed(0))
    return {n: t + 0.1 for n, t in params.items()}


def steps():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, length, WIDTH, generator=generator) for length in LENGTHS]


def by_hand(params, x):
    """One row: weighted means of its steps ``[T, width]``, head by head."""
    hidden = (x @ params["a.hidden.weight"].T + params["a.hidden.bias"]).tanh()
    scores = hidden @ params["a.score.weight"].T
    return torch.cat([scores[:, h].softmax(dim=0) @ x for h in range(HEADS)])


def test_heads_are_means_over_the_steps_that_are_there(params):
    present = torch.tensor([[True, True, True], [True, False, True]])
    z = nn.attention_fusion(params, "a", steps(), present)
    assert z.shape == (2, HEADS * WIDTH)
    for row in range(2):
        there = [x[row] for x, here in zip(steps(), present[row], strict=True) if here]
        torch.testing.assert_close(z[row], by_hand(params, torch.cat(there)))


def test_an_absent_modality_changes_nothing_and_gets_no_gradient(params):
    present = torch.tensor([[True, False, True], [True, False, True]])
    x = steps()
    x[1] = torch.full_like(x[1], 1e30).requires_grad_()
    x[0].requires_grad_()
    z = nn.attention_fusion(params, "a", x, present)
    torch.testing.assert_close(z, nn.attention_fusion(params, "a", steps(), present))
    there, absent = torch.autograd.grad(z.square().sum(), x[:2])
    assert there.abs().max() > 0
    assert torch.equal(absent, torch.zeros_like(absent))


def test_a_row_without_any_modality_is_zero(params):
    z = nn.attention_fusion(params, "a", steps(), torch.tensor([[False] * 3, [True] * 3]))
    assert torch.equal(z[0], torch.zeros(HEADS * WIDTH))
    assert z[1].abs().min() > 0


def test_a_stack_of_clients(params):
    stacked = {n: torch.stack([t, -t]) for n, t in params.items()}
    x = [torch.stack([s, 2 * s]) for s in steps()]
    present = torch.tensor([[[True, False, True], [True, True, False]], [[False, True, True], [True] * 3]])

    def value(p, s, here):
        return nn.attention_fusion(p, "a", s, here).square().sum()

    found = torch.func.vmap(torch.func.grad(value))(stacked, x, present)
    for k in range(2):
        own = torch.func.grad(value)({n: t[k] for n, t in stacked.items()}, [s[k] for s in x], present[k])
        for name in own:
            torch.testing.assert_close(found[name][k], own[name], rtol=1e-4, atol=1e-6)
