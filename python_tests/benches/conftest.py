from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mmfl_fast.benches import prototype_loss
from mmfl_fast.benches.registry import Case

# Smaller than the sizes of any case but the tiny ones.
LARGEST = 24


@pytest.fixture
def small() -> Callable[[Case, bool], Case]:
    """``small(case, memory)``: small sizes and no compiled baseline; ``memory`` False: no peak memory."""

    def shrink(case: Case, memory: bool) -> Case:
        arguments = {k: min(v, LARGEST) if type(v) is int else v for k, v in case.arguments.items()}
        if "memory" in arguments:
            arguments["memory"] &= memory
            arguments["baselines"] = tuple(b for b in arguments["baselines"] if b != prototype_loss.COMPILED)
        return replace(case, arguments=arguments, repeats=1)

    return shrink
