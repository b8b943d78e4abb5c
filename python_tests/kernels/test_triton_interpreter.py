"""Triton's interpreter runs the kernels: it has to be chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("interpreted_triton.py")


def test_under_the_interpreter() -> None:
    pytest.importorskip("triton", reason="needs triton, which is not installed")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", str(TESTS), "-q", "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
