import torch

from mmfl_fast import nn


def generator():
    return torch.Generator().manual_seed(0)


def test_over_time_as_written_out():
    params = nn.init_convolutions("c", (2, 3), (5,), generator())
    params["c.0.bias"] = torch.tensor([0.5, -0.2, 0.1])
    x = torch.randn(4, 2, 7, generator=generator())
    padded = torch.nn.functional.pad(x, (2, 2))
    every = torch.stack(
        [
            torch.einsum("bik,oik->bo", padded[:, :, t : t + 5], params["c.0.weight"]) + params["c.0.bias"]
            for t in range(7)
        ],
        dim=2,
    ).clamp(min=0)
    expected = torch.stack([every[:, :, t : t + 2].amax(dim=2) for t in range(0, 7, 2)], dim=2)
    torch.testing.assert_close(nn.convolutions(params, "c", 1, x), expected)


def test_sizes_are_halved_and_rounded_up_so_nothing_is_too_short():
    series = nn.init_convolutions("c", (3, 4, 8, 16), (5,), generator())
    for length, steps in ((128, 16), (13, 2), (1, 1)):
        assert nn.convolutions(series, "c", 3, torch.zeros(2, 3, length)).shape == (2, 16, steps)
    image = nn.init_convolutions("c", (1, 4, 8), (3, 3), generator())
    assert nn.convolutions(image, "c", 2, torch.zeros(2, 1, 28, 9)).shape == (2, 8, 7, 3)


def test_initial_weights_keep_the_scale_through_layers():
    params = nn.init_convolutions("c", (16, 32, 64, 128), (5,), generator())
    x = torch.randn(64, 16, 64, generator=generator())
    for i in range(3):
        x = torch.nn.functional.conv1d(
            x.clamp(min=0) if i else x, params[f"c.{i}.weight"], params[f"c.{i}.bias"]
        )
    assert 1.0 < x.square().mean() < 4.0
