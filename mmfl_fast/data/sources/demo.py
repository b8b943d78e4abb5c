"""Four small real data sets that come with scikit-learn, as one federation that needs no download."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmfl_fast.data.arguments import suggestion
from mmfl_fast.data.assemble import dirichlet_task
from mmfl_fast.data.dataset import Features, Root
from mmfl_fast.data.entry import Entry
from mmfl_fast.data.federation import Federation

MODALITIES = {"digits": "image", "cancer": "cytology", "wine": "chemistry", "iris": "botany"}
CLIENTS = {"digits": 8, "cancer": 4, "wine": 3, "iris": 3}


def build(
    *,
    root: Root,  # noqa: ARG001 (nothing is read from the data root)
    alpha: float,
    clients: Mapping[str, int],
    seed: int,
) -> Federation:
    """Deal each data set to its clients by Dir(alpha); ``clients`` overrides CLIENTS task by task."""
    from sklearn import datasets

    if not isinstance(clients, Mapping):
        raise TypeError(f"clients of 'demo' must be a mapping from task name to number, got {clients!r}")
    for name in clients:
        if name not in CLIENTS:
            raise ValueError(f"clients names the unknown task {name!r}{suggestion(name, CLIENTS)}")
    bunches = {
        "digits": datasets.load_digits(),
        "cancer": datasets.load_breast_cancer(),
        "wine": datasets.load_wine(),
        "iris": datasets.load_iris(),
    }
    tasks = []
    for name, bunch in bunches.items():
        features = Features(
            inputs={MODALITIES[name]: bunch.data.astype(np.float32)}, labels=bunch.target.astype(np.int64)
        )
        num_clients = clients.get(name, CLIENTS[name])
        tasks.append(
            dirichlet_task(
                name, features, len(bunch.target_names), clients=num_clients, alpha=alpha, seed=seed
            )
        )
    return Federation(name="demo", tasks=tuple(tasks))


DEMO = Entry(
    name="demo",
    description="digits, breast cancer, wine and iris from scikit-learn: four modalities, no download",
    modality=", ".join(MODALITIES.values()),
    licence="CC BY 4.0 (UCI repository); BSD-3-Clause (scikit-learn)",
    source="UCI repository, as distributed with scikit-learn",
    options={"alpha": 1.0, "clients": CLIENTS, "seed": 0},
    datasets=(),
    build=build,
)
