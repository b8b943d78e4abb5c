"""Who runs a primitive, by request, by what was measured, and by what is built."""

import pytest
import torch

import mmfl_fast as mf
from mmfl_fast.kernels import backend
from mmfl_fast.kernels.choice import FASTEST

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PRIMITIVES = ("gram", "mix", "cross_gram_sq", "prototype_loss")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with an H200, with every part built and installed."""
    monkeypatch.setattr(backend, "_BUILT_WITH_CUDA", True)
    monkeypatch.setattr(backend, "_TRITON_INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    return monkeypatch


def test_every_primitive_has_a_measured_choice_on_either_device() -> None:
    for choices in FASTEST.values():
        assert set(choices) == {*PRIMITIVES, "client_step"}
        assert set(choices.values()) <= set(backend.NAMES) - {"auto"}


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_auto_goes_by_what_was_measured(primitive: str, a_gpu: pytest.MonkeyPatch) -> None:
    assert backend.chosen(primitive, CPU) == "native"
    assert backend.chosen(primitive, GPU) == "reference"
    a_gpu.setitem(FASTEST["cuda"], primitive, "triton")
    assert backend.chosen(primitive, GPU) == "triton"
    a_gpu.setitem(FASTEST["cpu"], primitive, "reference")
    assert backend.chosen(primitive, CPU) == "reference"


def test_auto_takes_the_plain_expression_where_the_fastest_is_not_built(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setitem(FASTEST["cuda"], "gram", "native")
    assert backend.chosen("gram", GPU) == "native"
    a_gpu.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert backend.chosen("gram", GPU) == "reference"
    a_gpu.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    a_gpu.setattr(backend, "_BUILT_WITH_CUDA", False)
    assert backend.chosen("gram", GPU) == "reference"


@pytest.mark.parametrize("name", ["native", "triton", "reference"])
def test_a_request_holds_on_a_gpu(name: str, a_gpu: pytest.MonkeyPatch) -> None:
    with mf.use_backend(name):
        assert backend.chosen("gram", GPU) == name
    assert backend.chosen("gram", GPU) == "reference"


def test_triton_does_not_serve_a_cpu(a_gpu: pytest.MonkeyPatch) -> None:
    with mf.use_backend("triton"), pytest.raises(RuntimeError, match="'triton' does not serve cpu tensors"):
        mf.ops.gram(torch.randn(3, 4))


def test_a_backend_that_is_not_there_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backend, "_TRITON_INSTALLED", True)
    with pytest.raises(RuntimeError, match="needs a GPU"), mf.use_backend("triton"):
        pass
    monkeypatch.setattr(backend, "_TRITON_INSTALLED", False)
    with pytest.raises(RuntimeError, match="Triton is not installed"), mf.use_backend("triton"):
        pass


def test_a_registered_op_on_a_gpu_runs_kernels_whatever_was_chosen(a_gpu: pytest.MonkeyPatch) -> None:
    assert backend.gpu_kernels("gram", GPU) == "native"
    with mf.use_backend("triton"):
        assert backend.gpu_kernels("gram", GPU) == "triton"
    with mf.use_backend("reference"):
        assert backend.gpu_kernels("gram", GPU) == "native"
    a_gpu.setattr(backend, "_BUILT_WITH_CUDA", False)
    assert backend.gpu_kernels("gram", GPU) == "triton"
