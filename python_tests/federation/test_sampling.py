import pytest

from mmfl_fast.federation.sampling import sample_clients


def test_full_participation_takes_all_in_order(toy_federation):
    assert sample_clients(toy_federation.clients, 1.0, 0, 0) == list(toy_federation.clients)


@pytest.mark.parametrize(("share", "count"), [(0.5, 3), (0.01, 1)])
def test_a_share_is_drawn_anew_each_round(toy_federation, share, count):
    draws = [[c.index for c in sample_clients(toy_federation.clients, share, r, 0)] for r in range(20)]
    assert all(len(d) == count and d == sorted(set(d)) for d in draws)
    assert len({tuple(d) for d in draws}) > 3
    assert draws[4] == [c.index for c in sample_clients(toy_federation.clients, share, 4, 0)]


def test_clients_without_training_rows_never_take_part(federation_with_an_empty_client):
    federation = federation_with_an_empty_client
    able = [c.index for c in federation.clients if c.num_train]
    assert len(able) == len(federation.clients) - 1
    assert [c.index for c in sample_clients(federation.clients, 1.0, 0, 0)] == able
