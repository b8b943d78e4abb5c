import pytest
import torch

from mmfl_fast import nn


def generator():
    return torch.Generator().manual_seed(0)


def parameters(inputs, width):
    params = nn.init_gru("g", inputs, width, generator())
    return {n: t.double() + 0.1 * torch.randn(t.shape, dtype=torch.float64) for n, t in params.items()}


@pytest.mark.parametrize(("rows", "steps", "inputs", "width"), [(1, 1, 1, 1), (5, 7, 3, 4), (2, 3, 6, 2)])
def test_it_is_torchs_gru(rows, steps, inputs, width):
    params = {n: t.requires_grad_() for n, t in parameters(inputs, width).items()}
    theirs = torch.nn.GRU(inputs, width, batch_first=True).double()
    state = zip(
        ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"),
        ("g.input.weight", "g.state.weight", "g.input.bias", "g.state.bias"),
        strict=True,
    )
    names = dict(state)
    theirs.load_state_dict({mine: params[ours].detach() for mine, ours in names.items()})
    x = torch.randn(rows, steps, inputs, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(rows, steps, width, dtype=torch.float64)
    mine, expected = nn.gru(params, "g", x), theirs(x)[0]
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)

    found = torch.autograd.grad((mine * upstream).sum(), [x, *(params[ours] for ours in names.values())])
    wanted = torch.autograd.grad(
        (expected * upstream).sum(), [x, *(theirs.get_parameter(name) for name in names)]
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_recurrent_weights_of_a_gate_are_orthogonal():
    weights = nn.init_gru("g", 3, 6, generator())["g.state.weight"]
    for gate in weights.split(6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)
    assert not torch.equal(weights[:6], weights[6:12])
