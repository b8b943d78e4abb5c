import pytest
import torch

from mmfl_fast import nn

WIDTH = 6
KINDS = [
    ("series", (13, 3), 2),
    ("tokens", (5, 4), 5),
    ("vector", (7,), 1),
    ("vector", (3, 4), 1),
    ("image", (9, 6), 1),
    ("image", (2, 8, 8), 1),
]


def parameters(kind, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.init_encoder(kind, "e", shape, filters=2, width=WIDTH, generator=generator)


@pytest.mark.parametrize(("shape", "kind"), [((4,), "vector"), ((8, 3), "series"), ((1, 8, 8), "image")])
def test_the_shape_tells_the_kind(shape, kind):
    assert nn.encoder_kind(shape) == kind


@pytest.mark.parametrize(("kind", "shape", "steps"), KINDS)
def test_a_feature_per_step_and_every_parameter_has_a_gradient(kind, shape, steps):
    params = {n: t.requires_grad_() for n, t in parameters(kind, shape).items()}
    features = nn.encoder(kind, params, "e", torch.randn(4, *shape))
    assert features.shape == (4, steps, WIDTH)
    assert nn.encoder_steps(kind, shape) == steps
    gradients = torch.autograd.grad((features * torch.randn(features.shape)).sum(), list(params.values()))
    for name, gradient in zip(params, gradients, strict=True):
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize(("kind", "shape", "steps"), KINDS)
def test_rows_do_not_see_each_other(kind, shape, steps):
    params = parameters(kind, shape)
    x = torch.randn(3, *shape)
    together = nn.encoder(kind, params, "e", x)
    for row in range(3):
        torch.testing.assert_close(nn.encoder(kind, params, "e", x[row : row + 1])[0], together[row])


@pytest.mark.parametrize(("kind", "shape", "steps"), KINDS)
def test_gradients_of_a_stack_of_clients_are_those_of_each(kind, shape, steps):
    models = [parameters(kind, shape, seed) for seed in range(3)]
    x, upstream = torch.randn(3, 4, *shape), torch.randn(4, steps, WIDTH)

    def value(params, rows):
        return (nn.encoder(kind, params, "e", rows) * upstream).sum()

    stacked = {n: torch.stack([m[n] for m in models]) for n in models[0]}
    found = torch.func.vmap(torch.func.grad(value))(stacked, x)
    for k, model in enumerate(models):
        for name, gradient in torch.func.grad(value)(model, x[k]).items():
            torch.testing.assert_close(found[name][k], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "told"),
    [
        ("series", (4,), r"'series' needs inputs \[T, C\]; got the shape \[4\]"),
        ("tokens", (1, 4, 4), r"'tokens' needs inputs \[T, C\]; got the shape \[1, 4, 4\]"),
        ("image", (4,), r"'image' needs inputs \[H, W\] or \[C, H, W\]; got the shape \[4\]"),
    ],
)
def test_a_kind_that_does_not_fit_is_told(kind, shape, told):
    with pytest.raises(ValueError, match=told):
        parameters(kind, shape)


def test_four_axes_have_no_kind_of_their_own():
    with pytest.raises(ValueError, match=r"shape \[2, 3, 4, 5\].*series, tokens, vector, image"):
        nn.encoder_kind((2, 3, 4, 5))
    assert (
        nn.encoder("vector", parameters("vector", (2, 3, 4, 5)), "e", torch.randn(2, 2, 3, 4, 5)).dim() == 3
    )
