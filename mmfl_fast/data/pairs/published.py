"""Federations of published image-text pairs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_choice
from mmfl_fast.data.assemble import capped
from mmfl_fast.data.dataset import Root, data_root
from mmfl_fast.data.entry import Entry
from mmfl_fast.data.federation import Federation
from mmfl_fast.data.pairs.from_pairs import unencoded, with_features
from mmfl_fast.data.pairs.pair_set import PairSet, PublishedPairs
from mmfl_fast.data.pairs.raw import ENCODER_OPTIONS
from mmfl_fast.data.partition import dirichlet, holdout
from mmfl_fast.data.seeding import stream


def pair_entry(pair_set: PairSet) -> Entry:
    """Return what the registry knows of a set of raw pairs."""
    return Entry(
        name=pair_set.name,
        description=pair_set.description,
        modality="image, text",
        licence=pair_set.licence,
        source=pair_set.source,
        options={
            **ENCODER_OPTIONS,
            "split": "random",
            "alpha": 1.0,
            "clients": 10,
            "samples_per_client": None,
            "seed": 0,
        },
        datasets=(),
        build=partial(build, pair_set),
        pair_sets=(pair_set,),
    )


def build(
    pair_set: PairSet,
    *,
    root: Root,
    split: str,
    alpha: float,
    clients: int,
    samples_per_client: int | None,
    seed: int,
    **encoders: Any,
) -> Federation:
    """Deal the pairs to ``clients`` by Dir(alpha); no row changes sides.

    Of several captions one is drawn per picture, for good: the features are extracted once. FedMVP's code
    draws one at every access.

    Args:
        pair_set: what to read.
        root: folder of the data sets.
        split: ``"random"``: as many rows as FedMVP tests on, drawn from all, or a fifth of each class where
            the paper does not use the set; ``"published"``.
        alpha: concentration of the Dirichlet label partition; a client's training and test rows have the
            same label mix.
        clients: number of clients.
        samples_per_client: keep at most so many pairs of a client, drawn at random.
        seed: fixes captions, partition, cap and random split.
        **encoders: ``image_encoder``, ``text_encoder``, ``features``, ``text_length`` and ``dtype`` of
            :func:`from_pairs`.
    """
    published = pair_set.contents(data_root(root))
    fed = unencoded(
        published.pictures,
        _drawn_captions(published, stream(seed, "captions", pair_set.name)),
        published.labels,
        np.zeros_like(published.labels),
        np.where(_trains(pair_set, published, split, seed), "train", "test"),
        pair_set.name,
        published.classes,
        pair_set.subject,
        pair_set.medium,
        encoders,
        seed,
    )
    # What the cap leaves out need not be encoded.
    return with_features(capped(dirichlet(fed, clients, alpha, seed), samples_per_client, seed))


def _drawn_captions(published: PublishedPairs, rng: np.random.Generator) -> list[str]:
    return [captions[int(rng.integers(len(captions)))] for captions in published.captions]


def _trains(pair_set: PairSet, published: PublishedPairs, split: str, seed: int) -> NDArray[np.bool_]:
    choices = ["random", "published"] if published.is_train is not None else ["random"]
    if require_choice("split", split, choices) == "published" and published.is_train is not None:
        return published.is_train
    if pair_set.num_test is None:
        return holdout(published.labels, seed)
    # Of a part of the set the same share.
    count = published.labels.size
    num_test = max(1, round(pair_set.num_test * count / pair_set.num_pairs))
    order = stream(seed, "holdout", pair_set.name).permutation(count)
    is_train = np.ones(count, dtype=np.bool_)
    is_train[order[:num_test]] = False
    return is_train
