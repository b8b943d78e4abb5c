"""``python benches/run.py ops [--device cuda] [--json FILE] [--only TEXT] [--threads N]``: the public ops.

Every line is checked against float64 first; a line that fails prints no time and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmfl_fast import _C, use_backend

sys.path.insert(0, str(Path(__file__).parent))
import registry

SUITES = {"ops": ["gram", "mix", "cross_gram_sq", "prototype_loss"]}
WITH_CUDA_KERNELS = ("gram", "mix", "cross_gram_sq", "prototype_loss")


def run_case(cases: list[registry.Case], seconds: float, bandwidth: float | None) -> dict[str, Any]:
    """Check one case, then time it; ``bandwidth`` is that of a copy, in bytes per millisecond."""
    bench = cases[0]
    error = registry.error_of(bench)
    line: dict[str, Any] = {"case": bench.name, "error": error, "tolerance": bench.tolerance}
    if error > bench.tolerance:
        return line
    timings = registry.alternate([{"ours": case.ours, **case.baselines} for case in cases], seconds)
    ours = timings.pop("ours")
    line["ours"] = asdict(ours)
    line["baselines"] = {
        name: {**asdict(timing), "ratio": ours.p50 / timing.p50} for name, timing in timings.items()
    }
    if bandwidth is not None and bench.moved:
        line["share_of_copy_bandwidth"] = bench.moved / ours.p50 / bandwidth
    return line


def _said_by(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    facts = {
        "processor": platform.processor() or platform.machine(),
        "simd": _C.simd_level(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "driver": _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "built with": _C.cuda_report()[0],
            "commit": os.environ.get("COMMIT") or _said_by("git", "rev-parse", "HEAD"),
        }
    return facts


def table_of(lines: list[dict[str, Any]], facts: dict[str, Any]) -> Table:
    """Times in milliseconds; a ratio below 1 means that ours is faster."""
    table = Table(title=" ".join(f"{key} {value}" for key, value in facts.items()))
    for column in ("case", "error", "p20", "p50", "p80 [ms]", "ours / baseline (p50)"):
        table.add_column(column, justify="left" if column in ("case", "ours / baseline (p50)") else "right")
    for line in lines:
        if "ours" not in line:
            table.add_row(line["case"], f"{line['error']:.1e}", "", "", "", "WRONG RESULT, not timed")
            continue
        ratios = ", ".join(f"{name} {values['ratio']:.2f}" for name, values in line["baselines"].items())
        if "share_of_copy_bandwidth" in line:
            ratios += f"; {line['share_of_copy_bandwidth']:.0%} of copy bandwidth"
        times = [f"{line['ours'][quantile]:.3g}" for quantile in ("p20", "p50", "p80")]
        table.add_row(line["case"], f"{line['error']:.1e}", *times, ratios)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="time to spend on each case")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    on_gpu = arguments.device == "cuda"
    for module in SUITES[arguments.suite]:
        if not on_gpu or module in WITH_CUDA_KERNELS:
            importlib.import_module(module)
    # Cases make their inputs without naming a device.
    torch.set_default_device(arguments.device)
    bandwidth = registry.copy_bandwidth() if on_gpu else None
    lines = []
    for builder in registry.builders(gpu=on_gpu):
        cases = registry.build_sets(builder)
        if arguments.only in cases[0].name:
            with use_backend("native"):
                lines.append(run_case(cases, arguments.seconds, bandwidth))
        del cases
    facts = machine(arguments.device)
    if bandwidth is not None:
        facts["copy [GB/s]"] = round(bandwidth / 1e6)
    Console(width=None if sys.stdout.isatty() else 150).print(table_of(lines, facts))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": facts, "cases": lines}, indent=2) + "\n")
    return 0 if all("ours" in line for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
