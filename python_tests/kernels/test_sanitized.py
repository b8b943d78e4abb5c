"""Under the compiler's sanitizers: the threads always, the whole extension with ``make sanitize``."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
PRELOADED = os.environ.get("LD_PRELOAD", "")

WRITES_BEHIND_THE_END = """
import torch
from mmfl_fast import _C
_C.gram([torch.ones(3, 5)], 1, True, [], False, False, torch.empty(8).double(), torch.empty(3).double(), 1)
"""
# Nine columns are no whole vector: the last row ends in masked lanes.
READS_BEHIND_THE_END = """
import sys; sys.path.insert(0, sys.argv[1])
import test_client_step as t
complete = t.client_step.take_steps
def one_element_short(program, external, *rest):
    return complete(program, [external[0].flatten()[:-1].clone(), *external[1:]], *rest)
t.client_step.take_steps = one_element_short
t.step(t.LOSSES["tanh"], *t.problem())
"""
WRITES_WHAT_ANOTHER_THREAD_READS = """
import threading, torch
from mmfl_fast import _C
products, means = torch.ones(900, 900).double(), torch.zeros(900).double()
callers = [threading.Thread(target=_C.cosine, args=(products, means, 0.0, 1)) for _ in range(2)]
for caller in callers: caller.start()
for caller in callers: caller.join()
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_threads_wait_for_each_other(tmp_path):
    environment = {**os.environ, "LD_PRELOAD": "", "TSAN_OPTIONS": "die_after_fork=0"}
    program = tmp_path / "threads_at_work"
    sources = [HERE / "threads_at_work.cpp", CSRC / "common/thread_pool.cpp", CSRC / "algebra/algebra.cpp"]
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread", f"-I{CSRC}",
         *map(str, sources), "-ldl", "-o", str(program)],
        env=environment, check=True,
    )  # fmt: skip
    done = subprocess.run([program], capture_output=True, text=True, env=environment, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer knows no addresses as random as this system's")
    assert done.returncode == 0, done.stderr


def found_in(script):
    command = [sys.executable, "-c", script, str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.skipif("libasan" not in PRELOADED, reason="needs make sanitize")
@pytest.mark.parametrize("script", [WRITES_BEHIND_THE_END, READS_BEHIND_THE_END])
def test_the_address_sanitizer_is_at_work(script):
    assert "heap-buffer-overflow" in found_in(script)


@pytest.mark.skipif("libtsan" not in PRELOADED, reason="needs make sanitize")
def test_the_thread_sanitizer_is_at_work():
    assert "data race" in found_in(WRITES_WHAT_ANOTHER_THREAD_READS)
