"""Items that the server of a federation makes itself, before training (FedMVP; papers.md 3.5 and 3.9)."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmfl_fast.data.federation import Federation, Task, require_federation
from mmfl_fast.data.pairs.pair_generator import PairGenerator, require_generator


def with_server_items(
    fed: Federation, generator: PairGenerator, count: int = 256, seed: int = 0
) -> Federation:
    """Give the server a fixed set of items in which nobody's rows have a part.

    For every class in turn a prompt from the name of the class, an image from the prompt, a caption from the
    image, and the features of both from the frozen encoders of the task. Images, captions and features lie
    in the cache: they are made once, and after a kill at most a batch is made again.

    Args:
        fed: whose tasks have raw image-text pairs (:func:`from_pairs`); of them only the names of the
            classes, what they are of, and the encoders are read.
        generator: the models; it needs both.
        count: items of each task.
        seed: integer >= 0, of the images.

    Returns:
        A new federation, whose tasks have ``server_items``.

    Raises:
        TypeError, ValueError: an argument is not as described, a task has no raw pairs, a class no name, or
            the generator lacks one of its models.
        MissingModelError, UnusableModelError, MissingLibraryError: as in :meth:`PairGenerator.imagined`.
    """
    require_federation("fed", fed)
    require_generator(generator)
    return replace(fed, tasks=tuple(_with_items(task, generator, count, seed) for task in fed.tasks))


def _with_items(task: Task, generator: PairGenerator, count: int, seed: int) -> Task:
    raw = task.raw
    if raw is None:
        raise ValueError(
            f"task {task.name!r} has no raw image-text pairs, so that the server knows neither names of "
            "classes nor encoders to make items with; mf.data.from_pairs builds such tasks, and data sets "
            "like 'emoji' are such"
        )
    pairs = generator.imagined(raw.classes, raw.pairs.subject, raw.pairs.medium, count, seed)
    features = replace(raw, pairs=pairs).inputs()
    return replace(task, server_items={side: torch.from_numpy(x) for side, x in features.items()})
