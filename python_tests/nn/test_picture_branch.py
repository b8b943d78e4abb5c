import pytest
import torch

from mmfl_fast import nn


def branch(shape, rows=2):
    params = nn.init_picture_branch("b", shape, torch.Generator().manual_seed(0))
    x = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(1))
    return params, nn.picture_branch(params, "b", x)


def test_the_released_image_branch():
    params, features = branch((28, 28))
    assert [tuple(params[f"b.conv.{i}.weight"].shape) for i in range(2)] == [(32, 1, 3, 3), (64, 32, 3, 3)]
    assert "b.last.weight" not in params
    assert features.shape == (2, 3136)
    assert (features >= 0).all()


def test_the_released_spectrogram_branch():
    params, features = branch((4, 64, 64))
    convolutions = [tuple(params[f"b.conv.{i}.weight"].shape[:2]) for i in range(3)]
    assert convolutions == [(32, 4), (64, 32), (64, 64)]
    assert params["b.last.weight"].shape == (64, 64, 2, 2)
    assert features.shape == (2, 3136)
    assert (features < 0).any(), "there is no ReLU behind the last convolution"


@pytest.mark.parametrize("shape", [(5, 5), (9, 40), (3, 13, 13), (14, 15), (2, 30, 50)])
def test_pictures_of_any_size(shape):
    _, features = branch(shape)
    assert features.shape == (2, nn.picture_features(shape))
