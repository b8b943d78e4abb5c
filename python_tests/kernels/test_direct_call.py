"""What may skip torch's dispatcher, and that everything else does not."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mmfl_fast as mf
from mmfl_fast.kernels.direct_call import needs_no_dispatch


class _Listener(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.heard.append(str(function))
        return function(*arguments, **(options or {}))


def test_plain_tensors_need_no_dispatch() -> None:
    x = torch.randn(3, 4)
    assert needs_no_dispatch(([x, x], 1, True, [], torch.nn.Parameter(x, requires_grad=False), None))


def test_a_gradient_needs_dispatch_unless_it_is_switched_off() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert not needs_no_dispatch(([torch.randn(3, 4), x], 1))
    assert not needs_no_dispatch((x,))
    with torch.no_grad():
        assert needs_no_dispatch((x,))


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
