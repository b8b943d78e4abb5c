import subprocess
import sys
from pathlib import Path

import pytest

import mmfl_fast as mf


def test_importing_loads_neither_triton_nor_transformers_and_touches_no_gpu():
    code = (
        "import sys, torch, mmfl_fast; "
        "assert not {'triton', 'transformers', 'diffusers', 'flwr'} & set(sys.modules); "
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_ops_do_without_the_engine():
    code = "import sys, mmfl_fast; mmfl_fast.ops; assert not {'pydantic', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_kernels_are_tested_and_timed_without_the_libraries_of_the_engine():
    tests = Path(__file__).parent
    needed = [
        *tests.glob("conftest.py"),
        *tests.glob("kernels/conftest.py"),
        *tests.glob("kernels/test_gpu_*"),
    ]
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('pydantic', 'pooch', 'sklearn'))); "
        f"import mmfl_fast.benches.ops; [runpy.run_path(path) for path in {list(map(str, needed))}]"
    )
    assert len(needed) == 6
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_an_unknown_name_is_told():
    with pytest.raises(AttributeError, match="module 'mmfl_fast' has no attribute 'kernel'"):
        mf.kernel  # noqa: B018


def test_public_names_exist():
    for name in mf.__all__:
        assert hasattr(mf, name)
    names = (
        "gram pearson_similarity cosine_similarity angular_similarity pairwise_sq_distance "
        "projection_distance subspace_distance consensus_matrix consensus_mix linear_cka class_prototypes "
        "prototype_contrastive_loss weighted_mean mix"
    )
    assert set(names.split()) <= set(mf.ops.__all__)


def test_arrows_go_down_only():
    """A lower layer never imports a higher one."""
    order = ("kernels", "ops", "data", "nn", "federation", "algorithms", "experiments", "cli")
    allowed = {
        "kernels": {"kernels"},
        "ops": {"kernels", "ops"},
        "data": {"data"},
        "nn": {"kernels", "ops", "nn"},
        # The engine runs the primitive of local training, which is no op.
        "federation": {"kernels", "ops", "data", "nn", "federation"},
        "algorithms": {"ops", "data", "nn", "federation", "algorithms"},
        "experiments": {"ops", "data", "nn", "federation", "algorithms", "experiments"},
    }
    import ast
    from pathlib import Path

    package = Path(mf.__file__).parent
    for layer, below in allowed.items():
        for path in (package / layer).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                names = []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [f"{node.module}.{a.name}" for a in node.names]
                elif isinstance(node, ast.Import):
                    names = [a.name for a in node.names]
                for name in names:
                    parts = name.split(".")
                    if parts[0] == "mmfl_fast" and len(parts) > 1 and parts[1] in order:
                        assert parts[1] in below, f"{path} imports {name}"
