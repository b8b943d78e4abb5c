import torch

from mmfl_fast import nn


def test_two_layers_with_a_relu_between():
    generator = torch.Generator().manual_seed(0)
    params = nn.init_two_layer("h", 5, 7, 3, generator)
    x = torch.randn(2, 4, 5, generator=generator)
    hidden = (x @ params["h.0.weight"].T + params["h.0.bias"]).clamp(min=0)
    expected = hidden @ params["h.1.weight"].T + params["h.1.bias"]
    torch.testing.assert_close(nn.two_layer(params, "h", x), expected)
