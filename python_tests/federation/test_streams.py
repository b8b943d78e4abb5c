import numpy as np
import torch

from mmfl_fast.federation.streams import Purpose, stream, torch_generator


def test_same_arguments_give_same_numbers():
    first, second = (stream(3, Purpose.BATCHES, 5, 7).random(4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_every_argument_matters():
    drawn = {
        stream(seed, purpose, round_index, client).integers(2**62)
        for seed in (0, 1)
        for purpose in (Purpose.SAMPLING, Purpose.BATCHES)
        for round_index in (0, 1)
        for client in (0, 1)
    }
    assert len(drawn) == 16


def test_drawing_leaves_global_generators_alone():
    before = torch.random.get_rng_state()
    torch.randn(3, generator=torch_generator(0, Purpose.INITIALISATION))
    assert torch.equal(before, torch.random.get_rng_state())
