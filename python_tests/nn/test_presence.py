import torch

from mmfl_fast import nn
from mmfl_fast.kernels.values import are_known, hidden_values


def test_absence_is_told_where_values_can_be_looked_at():
    assert nn.surely_absent(torch.zeros(3, dtype=torch.bool))
    assert not nn.surely_absent(torch.tensor([False, True]))
    told = []

    def look(here):
        told.append(nn.surely_absent(here))
        return here

    torch.func.vmap(look)(torch.zeros(2, 3, dtype=torch.bool))
    assert told == [False]


def test_where_values_are_hidden_it_is_told_of_what_is_always_absent():
    present = torch.zeros(3, 2, dtype=torch.bool)
    first, second = present.unbind(dim=1)
    with hidden_values([second]) as hidden:
        assert not are_known(present)
        assert not hidden.asked
        assert not nn.surely_absent(first)
        assert nn.surely_absent(present.unbind(dim=1)[1])
        assert hidden.asked
    assert nn.surely_absent(first)


def test_completeness_is_told_where_absence_is():
    assert nn.surely_complete(torch.ones(3, 2, dtype=torch.bool))
    assert not nn.surely_complete(torch.tensor([[True, True], [True, False]]))
    present, other = torch.ones(2, 3, 2, dtype=torch.bool)
    told = torch.func.vmap(lambda p: torch.tensor(nn.surely_complete(p)), out_dims=None)(present[None])
    assert not told
    with hidden_values([], [present]) as hidden:
        assert not hidden.asked
        assert not nn.surely_complete(other)
        assert nn.surely_complete(present)
        assert not nn.surely_absent(present)
        assert hidden.asked == {False, True}


def test_rows_are_told_where_values_can_be_looked_at():
    assert nn.known_rows(torch.tensor([True, False, True])).tolist() == [0, 2]
    assert nn.known_rows(torch.zeros(3, dtype=torch.bool)).tolist() == []
    told = []

    def look(mask):
        told.append(nn.known_rows(mask))
        return mask

    torch.func.vmap(look)(torch.ones(2, 3, dtype=torch.bool))
    assert told == [None]
