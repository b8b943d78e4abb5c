import pytest
import torch
import torch.nn.functional as F

from mmfl_fast import nn


def generator():
    return torch.Generator().manual_seed(0)


def test_mlp_is_linear_layers_with_a_relu_between():
    params = nn.init_mlp("f", 8, 3, generator())
    x = torch.randn(5, 8, generator=generator())
    h = x
    for i in range(3):
        h = h @ params[f"f.{i}.weight"].T + params[f"f.{i}.bias"]
        h = F.relu(h) if i < 2 else h
    torch.testing.assert_close(nn.mlp(params, "f", 3, x), h)


def test_initial_weights_keep_the_scale_through_depth():
    params = nn.init_mlp("f", 256, 8, generator())
    x = torch.randn(512, 256, generator=generator())
    y = nn.mlp(params, "f", 8, x)
    assert 0.5 < (y.square().mean() / x.square().mean()) < 2.0


def test_modality_input_is_the_mean_of_what_is_there():
    params = nn.init_modality_input("phi", {"a": 3, "b": 4}, 5, generator())
    values = {"a": torch.randn(3, 3, generator=generator()), "b": torch.randn(3, 2, 2, generator=generator())}
    present = torch.tensor([[True, True], [True, False], [False, False]])
    both = nn.modality_input(params, "phi", values, present)
    a = nn.linear(params, "phi.a", values["a"])
    b = nn.linear(params, "phi.b", values["b"].flatten(1))
    torch.testing.assert_close(both[0], (a[0] + b[0]) / 2)
    torch.testing.assert_close(both[1], a[1])
    assert torch.equal(both[2], torch.zeros(5))


def test_an_absent_modality_gives_its_layer_no_gradient():
    params = nn.init_modality_input("phi", {"a": 3, "b": 4}, 5, generator())
    values = {"a": torch.ones(2, 3), "b": torch.zeros(2, 4)}
    present = torch.tensor([[True, False], [True, False]])

    def total(p):
        return nn.modality_input(p, "phi", values, present).square().sum()

    gradients = torch.func.grad(total)(params)
    assert gradients["phi.a.weight"].abs().max() > 0
    assert gradients["phi.b.weight"].abs().max() == 0
    assert gradients["phi.b.bias"].abs().max() == 0


def test_orthonormal_rows():
    operator = nn.orthonormal_rows(6, 9, generator())
    torch.testing.assert_close(operator @ operator.T, torch.eye(6), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="7 rows, 3 columns"):
        nn.orthonormal_rows(7, 3, generator())


def test_retraction_leaves_orthonormal_rows_and_handles_stacks():
    operator = nn.orthonormal_rows(4, 6, generator())
    torch.testing.assert_close(nn.retract_rows(operator), operator, atol=1e-5, rtol=0)
    stack = torch.randn(3, 4, 6, generator=generator())
    retracted = nn.retract_rows(stack)
    torch.testing.assert_close(retracted @ retracted.mT, torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(nn.retract_rows(stack[1]), retracted[1])


def test_cross_entropy_ignores_padding():
    logits = torch.randn(4, 3, generator=generator())
    labels = torch.tensor([0, -100, 2, -100])
    torch.testing.assert_close(nn.cross_entropy(logits, labels), F.cross_entropy(logits[::2], labels[::2]))
    assert nn.cross_entropy(logits, torch.full((4,), -100)) == 0


def quadratic(curvature):
    return lambda params: 0.5 * curvature * params["w"].square().sum()


@pytest.mark.parametrize(("hessian_free", "factor"), [(False, 1.0), (True, 0.7)])
def test_meta_gradient_of_a_quadratic(hessian_free, factor):
    # f(w) = a/2 w^2: a (1 - alpha a) w to first order, a (1 - alpha a)^2 w with the Hessian.
    a, alpha = 3.0, 0.1
    w = torch.tensor([2.0, -1.0], dtype=torch.float64)
    gradient = torch.func.grad(
        lambda p: nn.adapted_loss(quadratic(a), quadratic(a), p, alpha, hessian_free=hessian_free)
    )({"w": w})["w"]
    torch.testing.assert_close(gradient, a * (1 - alpha * a) * w * factor, rtol=1e-9, atol=1e-9)


def test_meta_gradient_takes_the_hessian_from_its_own_batch():
    # w~ = (1 - alpha a) w, v = b w~, gradient (1 - alpha c) v.
    a, b, c, alpha = 3.0, 2.0, 5.0, 0.1
    w = torch.tensor([2.0, -1.0], dtype=torch.float64)
    gradient = torch.func.grad(
        lambda p: nn.adapted_loss(
            quadratic(a), quadratic(b), p, alpha, hessian_free=True, curvature=quadratic(c)
        )
    )({"w": w})["w"]
    torch.testing.assert_close(gradient, (1 - alpha * c) * b * (1 - alpha * a) * w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hessian_free", [False, True])
def test_meta_loss_reports_the_query_loss(hessian_free):
    w = {"w": torch.tensor([2.0], dtype=torch.float64)}
    value = nn.adapted_loss(quadratic(3.0), quadratic(1.0), w, 0.1, hessian_free=hessian_free)
    assert torch.isclose(value, torch.tensor(0.5 * (2.0 - 0.1 * 6.0) ** 2, dtype=torch.float64))
