"""Five real data sets in four modalities, 64 clients: the pattern of M3Fed's Table 1."""

from __future__ import annotations

from mmfl_fast.data.arguments import require_integer
from mmfl_fast.data.assemble import dirichlet_task
from mmfl_fast.data.cache import load_features
from mmfl_fast.data.dataset import Root
from mmfl_fast.data.entry import Entry
from mmfl_fast.data.federation import Federation
from mmfl_fast.data.sources.fsdd import FSDD
from mmfl_fast.data.sources.hapt import HAPT
from mmfl_fast.data.sources.meld import MELD
from mmfl_fast.data.sources.mnist import MNIST
from mmfl_fast.data.sources.sign import SIGN

# In place of AffectNet (20 clients), SEED-V (6), UCF-101 (8), Epic-Kitchens (10) and MEAD (20).
PARTS = ((MNIST, 20), (HAPT, 6), (SIGN, 8), (FSDD, 10), (MELD, 20))


def build(
    *,
    root: Root,
    alpha: float,
    seed: int,
    samples_per_client: int | None,
    scale: int,
) -> Federation:
    """Deal each data set by Dir(alpha) to ``scale`` times its number of clients."""
    scale = require_integer("scale", scale, minimum=1)
    tasks = [
        dirichlet_task(
            dataset.name,
            load_features(dataset, root),
            len(dataset.classes),
            clients=clients * scale,
            alpha=alpha,
            seed=seed,
            samples_per_client=samples_per_client,
        )
        for dataset, clients in PARTS
    ]
    return Federation(name="m3fed-five", tasks=tuple(tasks))


_DATASETS = tuple(dataset for dataset, _ in PARTS)

M3FED_FIVE = Entry(
    name="m3fed-five",
    description="MNIST, HAPT, Sign Language Digits, FSDD and MELD: four modalities, 64 clients",
    modality=", ".join(dict.fromkeys(m for dataset in _DATASETS for m in dataset.modalities)),
    licence="that of each of the five",
    source="; ".join(dataset.source for dataset in _DATASETS),
    options={"alpha": 1.0, "seed": 0, "samples_per_client": None, "scale": 1},
    datasets=_DATASETS,
    build=build,
)
