from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import mmfl_fast.data as data


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's cache out of the tests, so that every extractor really runs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("feature-cache")
        patch.setenv("MMFL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return the data root for a named set, or skip where its files are not."""
    chosen = os.environ.get("MMFL_DATA")
    root = Path(chosen) if chosen else Path(__file__).resolve().parents[3] / "shared" / "data"

    def root_of(name: str) -> Path:
        if not data.describe(name).is_present(root):
            pytest.skip(f"{name} is not under {root} (MMFL_DATA names the data root)")
        return root

    return root_of


@pytest.fixture
def make_federation() -> Callable[..., data.Federation]:
    """Return a maker of federations whose first feature is the row number, so that rows can be followed."""

    def make(
        rows: int = 600,
        num_classes: int = 5,
        clients: int = 7,
        modalities: int = 2,
        name: str = "toy",
        **rest,
    ) -> data.Federation:
        rng = np.random.default_rng(rows + num_classes)
        inputs = {
            f"m{j}": np.column_stack([np.arange(1, rows + 1), rng.normal(size=(rows, j + 2)) + 5])
            for j in range(modalities)
        }
        labels = rng.integers(num_classes, size=rows)
        labels[:num_classes] = np.arange(num_classes)
        return data.from_arrays(inputs, labels, rng.integers(clients, size=rows), name=name, **rest)

    return make
