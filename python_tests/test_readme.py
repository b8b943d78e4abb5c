import re
from pathlib import Path

import numpy as np
import pytest

from mmfl_fast import run
from mmfl_fast.experiments.presets import load_experiment

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def names():
    """What the prose of the README introduces: a user's own arrays."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 300)
    return {
        "X1": generator.normal(size=(300, 6)) + y[:, None],
        "X2": generator.normal(size=(300, 4, 2)),
        "y": y,
        "ids": generator.integers(0, 6, 300),
        "split": np.where(np.arange(300) % 5 == 0, "test", "train"),
    }


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


def test_every_example_runs_in_order(names):
    for source in EXAMPLES:
        exec(compile(source, str(README), "exec"), names)
    assert names["result"].final["accuracy"] > 1 / 3


def test_a_new_algorithm_fits_in_about_thirty_lines():
    (source,) = (s for s in EXAMPLES if "(Algorithm)" in s)
    assert len([line for line in source.splitlines() if line.strip()]) <= 35


def test_the_yaml_example_runs(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {"modality:acc": names["X1"], "modality:gyro": names["X2"], "labels": names["y"]}
    np.savez("my-data.npz", **arrays, clients=names["ids"], split=names["split"])
    (source,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    Path("mine.yaml").write_text(source)
    experiment = load_experiment("mine.yaml", ["rounds=1"])
    result = run(experiment.federation(0), "m3fed", rounds=1, config=experiment.options_of("m3fed"))
    assert set(result.final["per_dataset"]) == {"my-data"}
