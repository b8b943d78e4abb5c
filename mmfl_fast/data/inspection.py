"""Examining the files of a data set without loading a federation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmfl_fast.data.dataset import DataSet, Features, SourceFile


def find_problems(dataset: DataSet, root: Path) -> list[str]:
    """Return what is wrong with the files, or if they are well with the samples read from them."""
    folder = root / dataset.folder
    problems = [p for file in dataset.files if (p := _file_problem(dataset, file, folder)) is not None]
    return problems or _sample_problems(dataset, folder)


def _file_problem(dataset: DataSet, file: SourceFile, folder: Path) -> str | None:
    path = file.locate(folder)
    if path is None:
        return f"{folder / file.name}: absent; get it with: mmfl-fast data fetch {dataset.name}"
    defect = file.defect(path)
    return None if defect is None else f"{path}: {defect}"


def _sample_problems(dataset: DataSet, folder: Path) -> list[str]:
    paths = {file.name: path for file in dataset.files if (path := file.locate(folder)) is not None}
    features = dataset.extract(paths)
    counts = np.bincount(features.labels, minlength=len(dataset.classes)).tolist()
    expected_and_found = {
        "samples per class": (list(dataset.classes.values()), counts),
        "feature shapes": (dict(dataset.modalities), {m: x.shape[1:] for m, x in features.inputs.items()}),
        "people": (len(dataset.people), _num_people(features)),
        "training samples": (
            dataset.num_train,
            None if features.is_train is None else int(features.is_train.sum()),
        ),
    }
    return [
        f"{dataset.name}: expected {what} {expected}, read {found}"
        for what, (expected, found) in expected_and_found.items()
        if expected != found
    ]


def _num_people(features: Features) -> int:
    return 0 if features.people is None else np.unique(features.people[features.people >= 0]).size
