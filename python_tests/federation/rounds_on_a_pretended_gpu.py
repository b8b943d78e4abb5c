"""What test_pretended_gpu.py looks at: ``python rounds_on_a_pretended_gpu.py CASES FILE``.

``CASES`` is JSON, name -> method and options, and ``FILE`` is written: name -> what happened. Every case runs
twice, its clients in stacks: on the CPU, and on the device of pretend_gpu.py with its steps recorded.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretend_gpu import DEVICE, OnDevice, events, pretending, record

import mmfl_fast as mf
from mmfl_fast import algorithms, data
from mmfl_fast.federation import local_training, simulation
from mmfl_fast.federation.checkpoints import state_tensors
from mmfl_fast.federation.config import option_names

_SMALL = {
    "width": 8,
    "operator_rows": 4,
    "layers": 2,
    "filters": 2,
    "attention_width": 6,
    "heads": 2,
    "head_width": 8,
    "projection_width": 8,
    "batch_size": 8,
    "local_epochs": 1,
}


def federation() -> data.Federation:
    """Seven clients of unequal size, some rows of which lack a modality."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(7), (25, 9, 15, 25, 11, 25, 15))
    labels = np.arange(len(owners)) % 3
    shapes = {"left": (3, 2), "right": (5,)}
    inputs = {
        name: generator.normal(size=(3, *shape))[labels] + generator.normal(size=(len(labels), *shape))
        for name, shape in shapes.items()
    }
    whole = data.from_arrays(inputs, labels, owners, name="toy")
    return data.with_missing(whole, rate=0.3, level="sample", seed=0)


def run(method: str, options: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    known = option_names(algorithms.get(method).Config)
    small = {name: value for name, value in _SMALL.items() if name in known}
    config = {**small, "chunk": 3, "native_steps": "off", "evaluate_every": 2, **options}
    simulation.resolve_device = lambda _: device
    return state_tensors(mf.run(federation(), method, rounds=2, config=config).state)


def main(cases: dict[str, tuple[str, dict[str, Any]]], file: Path) -> None:
    simulation.record_launches = record
    inside: Counter[str] = Counter()
    plain = local_training.train_stack

    def watched(*arguments: Any) -> Any:
        before = Counter(events)
        results = plain(*arguments)
        inside.update(events - before)
        return results

    local_training.train_stack = watched
    found: dict[str, Any] = {}
    for name, (method, options) in cases.items():
        inside.clear()
        try:
            expected = run(method, options, torch.device("cpu"))
            with pretending():
                got = run(method, options, DEVICE)
                plain_values = {n: t.raw if isinstance(t, OnDevice) else t for n, t in got.items()}
            worst = {
                n: float((t.double() - expected[n].double()).abs().nan_to_num().max()) if t.numel() else 0.0
                for n, t in plain_values.items()
            }
            found[name] = {"worst": max(worst.values()), "where": max(worst, key=worst.__getitem__)}
            found[name].update(inside)
        except Exception as problem:
            found[name] = {"problem": f"{type(problem).__name__}: {problem}"}
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
