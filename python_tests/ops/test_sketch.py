import numpy as np
import pytest
import torch

import mmfl_fast as mf


def cosines(rows):
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return unit @ unit.T


def test_sketches_keep_inner_products_on_average_over_seeds():
    rows = torch.randn(3, 500, dtype=torch.float64) + 0.3
    found = torch.stack([s @ s.T for s in (mf.ops.sketch(rows, 50, seed=seed) for seed in range(400))])
    norms = (rows**2).sum(dim=1)
    exact = rows @ rows.T
    deviation = ((norms.outer(norms) + exact**2) / 50).sqrt()
    assert ((found.mean(dim=0) - exact).abs() < 4 * deviation / 400**0.5).all()
    assert (found.std(dim=0) < 1.15 * deviation).all()


@pytest.mark.parametrize("width", [1, 7, 500, 1000])
def test_it_is_linear_and_any_width_will_do(width):
    a, b = torch.randn(2, 1, 500, dtype=torch.float64)
    both = mf.ops.sketch(torch.cat([a, b, 2 * a - b]), width, seed=3)
    assert both.shape == (3, width)
    torch.testing.assert_close(both[2], 2 * both[0] - both[1])


def test_columns_of_one_block_never_meet():
    torch.testing.assert_close(mf.ops.sketch(torch.eye(40), 40).abs().sum(dim=0), torch.ones(40))


def test_columns_of_different_blocks_meet_by_chance():
    """Equally spaced columns, as those of one input in a weight matrix, must not fall together."""
    rows = torch.eye(1600)[::40].contiguous()  # one column in each of 40 blocks
    hit = (mf.ops.sketch(rows, 40) != 0).any(dim=0).sum()
    assert 15 < hit < 35  # 40 (1 - exp(-1)) = 25 on average


def test_all_forms_of_rows_agree():
    rows = torch.randn(70, 30)
    mappings = [{"a": r[:20].view(4, 5), "b": r[20:]} for r in rows]
    segments = [rows[:, :20].reshape(70, 4, 5), rows[:, 20:]]
    assert torch.equal(mf.ops.sketch(mappings, 8), mf.ops.sketch(segments, 8))
    assert torch.equal(mf.ops.sketch(rows, 8), mf.ops.sketch(rows.T.contiguous().T, 8))


def test_pearson_similarity_comes_within_its_error():
    rows = torch.randn(40, 20000) + 3 * torch.randn(20000) + torch.randn(40, 1)
    origin = rows.mean(dim=0)
    short = mf.ops.sketch(rows, 2048, origin=origin, centre_rows=True)
    error = cosines(short) - mf.ops.pearson_similarity(rows)
    pairs = ~torch.eye(40, dtype=torch.bool)
    assert error[pairs].std() < 1.2 * 2048**-0.5
    uncentred = mf.ops.sketch(rows, 2048, origin=origin)
    torch.testing.assert_close(
        mf.ops.sketch(rows - origin - (rows - origin).mean(dim=1, keepdim=True), 2048),
        short,
        rtol=1e-3,
        atol=1e-3,
    )
    assert (uncentred - short).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_numbers(dtype):
    rows = torch.randn(3, 100).to(dtype)
    short = mf.ops.sketch(rows, 10)
    assert short.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(short, mf.ops.sketch(rows.double(), 10).to(short.dtype))


def test_gradients_and_non_finite_rows():
    rows = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mf.ops.sketch(x, 6, centre_rows=True), rows)
    bad = torch.randn(3, 20)
    bad[1, 4] = torch.nan
    finite = mf.ops.sketch(bad, 6, centre_rows=True).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize("seed", range(8))
def test_gradients_of_blocks_that_are_not_shifted(seed):
    """Of some seed an offset is 0, and the part that is added covers all columns."""
    rows = torch.randn(2, 12, requires_grad=True)
    mf.ops.sketch(rows, 3, seed=seed).sum().backward()
    assert rows.grad.abs().unique().tolist() == [1.0]


def test_rows_without_elements_have_empty_sketches():
    rows = torch.randn(3, 5)
    assert torch.equal(mf.ops.sketch(rows[:, :0], 4, centre_rows=True), torch.zeros(3, 4))
    assert torch.equal(mf.ops.sketch([rows[:, :0], rows], 4), mf.ops.sketch(rows, 4))


def test_numbers_of_numpy_are_numbers():
    rows = torch.randn(2, 5)
    assert torch.equal(mf.ops.sketch(rows, np.int64(4), seed=np.int32(1)), mf.ops.sketch(rows, 4, seed=1))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"width": 0}, ValueError),
        ({"width": 2.0}, TypeError),
        ({"width": True}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": 2**63}, ValueError),
        ({"seed": 1.5}, TypeError),
        ({"seed": "1"}, TypeError),
        ({"origin": "mean"}, ValueError),
    ],
)
def test_wrong_arguments_are_named(change, error):
    with pytest.raises(error, match=f"{next(iter(change))} must be"):
        mf.ops.sketch(torch.randn(2, 5), **{"width": 3, **change})
