"""What may skip torch's dispatcher, and that everything else does not."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mmfl_fast as mf
from mmfl_fast.kernels.direct_call import plain_tensors


class _Subclass(Tensor):
    pass


class _Listener(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.heard.append(str(function))
        return function(*arguments, **(options or {}))


def test_plain_tensors_skip_the_dispatcher() -> None:
    x, weight = torch.randn(3, 4), torch.nn.Parameter(torch.randn(3, 4))
    tensors = plain_tensors(([x, x], 1, True, [], weight, None))
    assert list(map(id, tensors)) == [id(x), id(x), id(weight)]


@pytest.mark.parametrize(
    "other", [torch.randn(3, 4, device="meta"), torch.randn(3, 4).as_subclass(_Subclass)]
)
def test_others_do_not(other: Tensor) -> None:
    assert plain_tensors(([other], 1)) == []


def test_a_gradient_is_recorded_unless_it_is_switched_off() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert mf.ops.gram(x).requires_grad
    with torch.no_grad():
        assert not mf.ops.gram(x).requires_grad
    with torch.inference_mode():
        assert mf.ops.gram(x).is_inference()


def test_a_dispatch_mode_sees_the_op() -> None:
    with _Listener() as listener:
        mf.ops.gram(torch.randn(3, 4))
    assert "mmfl_fast.gram.default" in listener.heard


def test_the_profiler_sees_the_op() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        mf.ops.gram(torch.randn(3, 4))
    assert "mmfl_fast::gram" in {event.key for event in profile.key_averages()}


def test_a_lazily_negated_view_is_resolved() -> None:
    z = torch.randn(3, 4, dtype=torch.complex64)
    negated = z.conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(mf.ops.gram(negated), mf.ops.gram(-z.imag))


def _every_op(x: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
    return [
        mf.ops.gram(x),
        mf.ops.weighted_mean(x, weights),
        mf.ops.linear_cka(x.unsqueeze(0)),
        mf.ops.angular_similarity(x),
        mf.ops.pairwise_sq_distance(x),
        mf.ops.prototype_contrastive_loss(x, labels, x),
        mf.ops.prototype_contrastive_loss(x, labels, x, reduction="none"),
    ]


def test_results_are_where_the_inputs_are_whatever_the_default_device() -> None:
    inputs = torch.randn(3, 4), torch.arange(3), torch.ones(3)
    expected = _every_op(*inputs)
    with torch.device("meta"):
        got = _every_op(*inputs)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.device.type == "cpu"
        assert torch.equal(mine, theirs)
