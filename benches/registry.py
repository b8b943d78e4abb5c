"""A bench case: inputs, our call, what it is compared with, what it should reach, how it is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]

# Quantities besides the ratios to baselines.
TIME = "time [us]"
BANDWIDTH = "share of copy bandwidth"
FLOOR = "share of the floor"
EXTRA_MEMORY = "extra memory / what is not stored"


def memory_over(baseline: str) -> str:
    """The quantity "our extra memory over that of a baseline"."""
    return f"extra memory / that of {baseline}"


@dataclass(frozen=True)
class Target:
    """What a measured quantity should come to.

    Attributes:
        quantity: a baseline's name, for the ratio of our time to its time; or one of those above.
        limit: in the unit of the quantity.
        at_least: whether the quantity should be at least the limit, instead of at most.
    """

    quantity: str
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        limit = f"1/{1 / self.limit:.3g}" if self.limit < 0.3 else f"{self.limit:.3g}"
        return f"{'≥' if self.at_least else '≤'} {limit}"


def at_most(limit: float, quantity: str) -> Target:
    return Target(quantity, limit)


def at_least(limit: float, quantity: str) -> Target:
    return Target(quantity, limit, at_least=True)


def times_faster(factor: float, baseline: str) -> Target:
    return Target(baseline, 1 / factor)


@dataclass(frozen=True)
class Work:
    """What a call cannot do without: bytes to read and write, floating-point operations of products.

    ``dtype`` is that of the inputs; a product of float32 counts as the three TF32 products it takes on a GPU.
    """

    moved: int
    flops: int = 0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Calls:
    """A case with its inputs made.

    Attributes:
        ours: the call that is timed.
        baselines: what it is compared with, by name: the best torch expressions, the read floor.
        exact: the result in float64, as one tensor.
        result: our result as one tensor, when ``ours`` returns something else.
        work: for the share of what the machine can do.
        avoided: bytes of what the kernel exists not to store. If positive, peak memory is measured, too.
    """

    ours: Call
    baselines: Mapping[str, Call]
    exact: Callable[[], Tensor]
    result: Callable[[Any], Tensor] = field(default=lambda output: output)
    work: Work | None = None
    avoided: int = 0


@dataclass(frozen=True)
class Case:
    """One case, before its inputs are made.

    Attributes:
        name: of its lines in the table.
        primitive: that does the work.
        build: makes the inputs on torch's current default device.
        arguments: of ``build``; integers are sizes.
        targets: what it should reach.
        tolerance: the largest error allowed, as a share of the largest exact value.
        repeats: calls per turn, for calls too short to be timed one by one.
    """

    name: str
    primitive: str
    build: Callable[..., Calls]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    tolerance: float = 1e-6
    repeats: int = 1

    def calls(self, device: str, largest: int | None = None) -> Calls:
        """Make the inputs, with no size above ``largest``."""
        arguments = dict(self.arguments)
        if largest is not None:
            arguments |= {k: min(v, largest) for k, v in arguments.items() if isinstance(v, int)}
        # Around the building alone: while it holds, every call of torch is slower by microseconds.
        with torch.device(device):
            return self.build(**arguments)


def error_of(calls: Calls) -> float:
    """Largest error of our result, as a share of the largest exact value; NaN counts as infinite."""
    with torch.no_grad():
        exact = calls.exact()
        ours = calls.result(calls.ours()).double()
    error = float((ours - exact).abs().max() / exact.abs().max())
    return error if error == error else float("inf")
