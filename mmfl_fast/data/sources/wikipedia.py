"""Wikipedia image-text pairs: featured articles in ten categories, as features of both modalities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.assemble import capped, split_rows, split_task
from mmfl_fast.data.cache import load_features
from mmfl_fast.data.dataset import DataSet, Features, Root, SourceFile
from mmfl_fast.data.entry import Entry
from mmfl_fast.data.federation import Federation
from mmfl_fast.data.partition import dirichlet

_UPSTREAM = (
    "https://raw.githubusercontent.com/TongJiayan/Multimodal-Retrieve/"
    "4a30add0eaa84a1c9b12928eec81c136f72917cb/data/wiki"
)
_MATRICES = {"image": ("I_tr", "I_te"), "text": ("T_tr", "T_te")}
_LISTS = ("trainset_txt_img_cat.list", "testset_txt_img_cat.list")


def _extract(files: Mapping[str, Path]) -> Features:
    """Read image and text features; row k of both and line k of the list are one document."""
    from scipy.io import loadmat

    matrices = loadmat(files["raw_features.mat"])
    inputs = {
        modality: np.concatenate([matrices[name] for name in names]).astype(np.float32, order="C")
        for modality, names in _MATRICES.items()
    }
    categories = [_categories(files[name]) for name in _LISTS]
    labels = np.concatenate(categories)
    return Features(inputs=inputs, labels=labels, is_train=np.arange(labels.size) < categories[0].size)


def _categories(path: Path) -> NDArray[np.int64]:
    """Return the categories 0..9 of a list of text name, image name, category 1..10."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return np.asarray([int(line.split("\t")[2]) - 1 for line in lines])


def build(
    *,
    root: Root,
    split: str,
    alpha: float,
    clients: int,
    samples_per_client: int | None,
    seed: int,
) -> Federation:
    """Deal the documents to ``clients`` by Dir(alpha); no row changes sides.

    Args:
        root: folder of the data sets.
        split: ``"published"``: 2173 documents train, 693 test. ``"random"``: both parts pooled, of which a
            fifth of each category tests.
        alpha: concentration of the Dirichlet label partition; a client's training and test rows have the
            same label mix.
        clients: number of clients.
        samples_per_client: keep at most so many documents of a client, drawn at random.
        seed: fixes partition, cap and random split.
    """
    features = load_features(WIKIPEDIA, root)
    task = split_task("wikipedia", features, len(WIKIPEDIA.classes), split_rows(features, split, seed))
    fed = dirichlet(Federation(task.name, (task,)), clients, alpha, seed)
    return capped(fed, samples_per_client, seed)


def _file(name: str, num_bytes: int, sha256: str) -> SourceFile:
    return SourceFile(name, num_bytes, sha256, url=f"{_UPSTREAM}/{name}")


WIKIPEDIA = DataSet(
    name="wikipedia",
    description="image-text pairs of ten categories: histograms of 128 visual words, mixtures of 10 topics",
    modalities={"image": (128,), "text": (10,)},
    classes={
        "art": 172,
        "biology": 360,
        "geography": 340,
        "history": 333,
        "literature": 267,
        "media": 236,
        "music": 237,
        "royalty": 185,
        "sport": 285,
        "warfare": 451,
    },
    licence="none stated in the files, distributed for research; the articles are CC BY-SA",
    source="Rasiwasia et al., A New Approach to Cross-Modal Multimedia Retrieval, ACM Multimedia 2010; "
    "github.com/TongJiayan/Multimodal-Retrieve",
    folder="wikipedia_image_text",
    files=(
        _file(
            "raw_features.mat", 1075232, "ca628f765a69575e168ab29eb97f5ade12fadf47b31de1328c7ff631c7f225ae"
        ),
        _file(
            "trainset_txt_img_cat.list",
            155153,
            "30c1ba8afbe90da5986de9b12496b6dd2e4680d3876b79ab7aae2e437d5819a3",
        ),
        _file(
            "testset_txt_img_cat.list",
            49494,
            "ec3123ee31cc89dd95fbeb23eb73b2ecfd1d8909bba863723471aad99408c1eb",
        ),
    ),
    default_clients=10,
    extract=_extract,
    features_version="visual-words-topics-1",
    num_train=2173,
)

WIKIPEDIA_PAIRS = Entry(
    name=WIKIPEDIA.name,
    description=WIKIPEDIA.description,
    modality=", ".join(WIKIPEDIA.modalities),
    licence=WIKIPEDIA.licence,
    source=WIKIPEDIA.source,
    options={
        "split": "published",
        "alpha": 1.0,
        "clients": WIKIPEDIA.default_clients,
        "samples_per_client": None,
        "seed": 0,
    },
    datasets=(WIKIPEDIA,),
    build=build,
)
