from dataclasses import replace
from itertools import combinations
from math import comb

import pytest
import torch

from mmfl_fast import data
from mmfl_fast.algorithms.true_modalities import adjusted_rand_index, modality_numbers


def test_the_same_modalities_have_one_number_across_tasks(mixed_federation, toy_federation):
    assert modality_numbers(mixed_federation).tolist() == [0] * 4 + [1] * 4
    twice = data.merge([mixed_federation, toy_federation])
    assert modality_numbers(twice).tolist() == [0] * 4 + [1] * 4 + [2] * 6
    (task,) = toy_federation.tasks
    twins = data.Federation("twins", (task, replace(task, name="other")))
    assert modality_numbers(twins).tolist() == [0] * 12
    uneven = data.with_missing(toy_federation, rate=0.7, seed=2)
    numbers = modality_numbers(uneven).tolist()
    for a, b in combinations(range(6), 2):
        same = set(uneven.clients[a].modalities) == set(uneven.clients[b].modalities)
        assert (numbers[a] == numbers[b]) == same


def by_pairs(a, b):
    """Hubert and Arabie's index: pairs together in both, adjusted by what chance gives."""
    pairs = list(combinations(range(len(a)), 2))
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    in_a, in_b = (sum(x[i] == x[j] for i, j in pairs) for x in (a, b))
    chance = in_a * in_b / comb(len(a), 2)
    return (both - chance) / ((in_a + in_b) / 2 - chance)


@pytest.mark.parametrize(
    ("clusters", "modalities"),
    [
        ([0, 0, 1, 1], [3, 3, 0, 0]),
        ([0, 0, 1, 1], [0, 0, 1, 2]),
        ([0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1]),
        ([0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 0, 2, 2]),
    ],
)
def test_agreement_counts_pairs(clusters, modalities):
    found = adjusted_rand_index(torch.tensor(clusters), torch.tensor(modalities))
    assert found == pytest.approx(by_pairs(clusters, modalities))


def test_clients_without_a_cluster_are_left_out():
    clusters, modalities = torch.tensor([-1, 0, 0, 1, -1, 1]), torch.tensor([1, 0, 0, 1, 0, 1])
    assert adjusted_rand_index(clusters, modalities) == 1.0
