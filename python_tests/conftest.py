from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

# The engine is imported where a fixture needs it: the kernels are tested without the libraries it stands on.
if TYPE_CHECKING:
    from mmfl_fast.data import Federation

# Without it torch refuses products on a GPU while it is asked to be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail, instead of skipping, when the gpu tests cannot run"
    )


def pytest_configure() -> None:
    # Processes that test side by side share the cores.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    reason = "needs a CUDA device; torch sees none"
    if item.config.getoption("--require-gpu"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """End a process of xdist whose GPU an error has spoilt for good: another takes its place."""
    if report.when == "teardown" and "PYTEST_XDIST_WORKER" in os.environ and _gpu_is_spoilt():
        os._exit(1)


def _gpu_is_spoilt() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nan_in_fresh_memory() -> Iterator[None]:
    """Outputs start as NaN, so that an element nobody writes fails its test."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def set_threads() -> Iterator[object]:
    """``set_threads(n)`` for one test."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


_SMALL_MODEL = {
    "width": 12,
    "operator_rows": 8,
    "layers": 2,
    "filters": 3,
    "attention_width": 10,
    "heads": 2,
    "head_width": 8,
    "projection_width": 16,
    "batch_size": 8,
    "local_epochs": 1,
}


@pytest.fixture
def small() -> Callable[..., dict[str, Any]]:
    """``small("pcgrad", momentum=0.0)``: options of a small model for a method, and further ones."""
    from mmfl_fast import algorithms
    from mmfl_fast.federation.config import option_names

    def options(method: str, **further: Any) -> dict[str, Any]:
        known = option_names(algorithms.get(method).Config)
        model = {k: v for k, v in _SMALL_MODEL.items() if k in known}
        # Its attention has eight heads.
        return {**model, **({"width": 8} if method in ("fedmvp", "joint-fedavg") else {}), **further}

    return options


def _learnable(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    classes: int,
    sizes: Sequence[int],
    seed: int,
    name: str,
) -> Federation:
    """Gaussian classes around random centres, dealt to clients of the given sizes."""
    from mmfl_fast import data

    generator = np.random.default_rng(seed)
    total = sum(sizes)
    labels = np.arange(total) % classes
    values = {}
    for modality, shape in zip(names, shapes, strict=True):
        centres = generator.normal(0, 2, size=(classes, *shape))
        values[modality] = centres[labels] + generator.normal(0, 1, size=(total, *shape))
    owners = np.repeat(np.arange(len(sizes)), sizes)
    shuffled = generator.permutation(total)
    return data.from_arrays({m: v[shuffled] for m, v in values.items()}, labels[shuffled], owners, name=name)


@pytest.fixture
def toy_federation() -> Federation:
    """One task, two modalities, six clients of unequal size."""
    return _learnable(("left", "right"), ((3, 2), (5,)), 3, (30, 11, 24, 40, 17, 9), 0, "toy")


@pytest.fixture
def mixed_federation() -> Federation:
    """Two tasks of one modality each, with other widths and numbers of classes, eight clients."""
    from mmfl_fast import data

    images = _learnable(("image",), ((4, 4),), 4, (40, 30, 60, 25), 1, "images")
    sounds = _learnable(("audio",), ((10,),), 3, (35, 50, 20, 45), 2, "sounds")
    return data.merge([images, sounds])


@pytest.fixture
def federation_with_an_empty_client() -> Federation:
    """Three clients, the second of which has test rows only."""
    from mmfl_fast import data

    owners = np.repeat([0, 1, 2], 20)
    split = np.where((owners == 1) | (np.arange(60) % 5 == 0), "test", "train")
    values = np.random.default_rng(0).normal(size=(60, 4))
    return data.from_arrays({"x": values}, np.arange(60) % 2, owners, split=split, name="gap")
