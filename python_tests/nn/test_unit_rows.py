import torch

from mmfl_fast import nn


def test_rows_get_unit_length():
    rows = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    torch.testing.assert_close(nn.unit_rows(rows), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_a_row_of_zeros_stays_and_gets_no_gradient():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    units = nn.unit_rows(rows)
    assert torch.equal(units[0], torch.zeros(2))
    (gradient,) = torch.autograd.grad((units * torch.tensor([1.0, 2.0])).sum(), rows)
    assert torch.equal(gradient[0], torch.zeros(2))
    assert gradient[1].abs().min() > 0
