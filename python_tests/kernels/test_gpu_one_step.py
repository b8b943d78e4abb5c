"""What a GPU computes in one step behind a primitive, against the expressions in torch."""

import pytest
import torch

import mmfl_fast as mf
from mmfl_fast.kernels import one_step

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _native():
    if "cuda" not in mf.backends()["native"].devices:
        pytest.skip("built without CUDA")
    with mf.use_backend("native"):
        yield


def rows(count):
    x = torch.randn(count, 300, device="cuda")
    if count > 4:
        x[1], x[2], x[3] = 0, x[0], -x[0]
        x[4, 7] = torch.nan
    return x


@pytest.mark.parametrize("count", [1, 16, 70])
@pytest.mark.parametrize("name", ["cosine", "angular", "sq_distance", "alignment"])
def test_a_step_is_the_composition(name, count):
    x = rows(count)
    arguments = {
        "sq_distance": ([x], 1, True, False),
        "alignment": ([x.view(count, 60, 5)], False, 1e-20),
    }.get(name, ([x], 1, True, [], True, True, False, 1e-12))
    function = getattr(one_step, name)
    torch.testing.assert_close(
        function(*arguments), function.__wrapped__(*arguments), rtol=1e-13, atol=1e-13, equal_nan=True
    )


def test_a_step_has_gradients_and_is_captured():
    x = torch.randn(8, 4096, device="cuda", requires_grad=True)
    mf.ops.angular_similarity(x).sum().backward()
    assert x.grad.isfinite().all()
    still = x.detach()
    expected = mf.ops.angular_similarity(still)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = mf.ops.angular_similarity(still)
    graph.replay()
    assert torch.equal(captured, expected)
