from __future__ import annotations

import itertools

import pytest

from mmfl_fast.data.seeding import stream


def test_streams_are_fixed_by_seed_and_purpose_alone():
    first = stream(7, "a", "b").random(3).tolist()
    stream(7, "c").random(100)
    assert stream(7, "a", "b").random(3).tolist() == first


def test_streams_of_different_seeds_or_purposes_differ():
    streams = [stream(0), stream(1), stream(0, "ab"), stream(0, "a", "b"), stream(0, "b", "a")]
    draws = [rng.random(4).tolist() for rng in streams]
    assert all(x != y for x, y in itertools.combinations(draws, 2))


def test_the_numbers_do_not_change_between_versions():
    # Published results name a seed: a change here changes every partition.
    assert stream(0, "dirichlet", "mnist").bit_generator.random_raw() == 10872565859265425821


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.0, TypeError), (None, TypeError)])
def test_wrong_seed(seed, error):
    with pytest.raises(error, match="seed must be"):
        stream(seed, "x")
