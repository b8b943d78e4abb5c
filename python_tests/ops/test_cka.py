from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mmfl_fast as mf


def oracle(views, debiased=False):
    """float64 NumPy, by the definitions: explicit centring matrix; the estimator on K without diagonal."""
    kernels = []
    for x in views:
        x = np.asarray(x, dtype=np.float64)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        x = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
        kernels.append(x @ x.T)
    n = len(kernels[0])
    ones, centre = np.ones(n), np.eye(n) - 1 / n

    def hsic(k, m):
        if not debiased:
            return np.trace(centre @ k @ centre @ m)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        sums = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + sums - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    scale = [np.sqrt(hsic(k, k)) for k in kernels]
    matrix = np.array(
        [
            [hsic(k, m) / (a * b) for m, b in zip(kernels, scale, strict=True)]
            for k, a in zip(kernels, scale, strict=True)
        ]
    )
    np.fill_diagonal(matrix, 1)
    return torch.from_numpy(matrix)


def representations(count=4, rows=12, columns=6, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    return (shared + 0.7 * torch.randn(count, rows, columns, generator=g, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (5, 40), (12, 6), (130, 7)])
def test_matches_the_definition(debiased, rows, columns):
    x = representations(rows=rows, columns=columns)
    got = mf.ops.linear_cka(x, debiased=debiased)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, oracle(x, debiased))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("debiased", [False, True])
def test_low_precision_input_is_computed_in_float32(dtype, debiased):
    x = representations(rows=70, columns=33, dtype=dtype)
    got = mf.ops.linear_cka(x, debiased=debiased)
    torch.testing.assert_close(got, oracle(x.double(), debiased), rtol=1e-5, atol=1e-6)


def test_representations_of_different_widths():
    views = [representations(1, 9, columns, seed=columns)[0] for columns in (3, 20, 1)]
    torch.testing.assert_close(mf.ops.linear_cka(views), oracle(views))


def test_same_space_has_similarity_one():
    x = torch.nn.functional.normalize(representations(1)[0], dim=1)
    rotation, _ = torch.linalg.qr(representations(1, 6, 6, seed=3)[0])
    got = mf.ops.linear_cka([x, x @ rotation, 3 * x])
    torch.testing.assert_close(got, torch.ones(3, 3, dtype=torch.float64))
    assert torch.equal(got.diagonal(), torch.ones(3, dtype=torch.float64))
    assert got.max() <= 1


def test_centrality_weights_of_three_clients():
    # Orthogonal centred sign patterns s_c as columns scaled by sqrt(a_c) give K = sum_c a_c s_c s_c^T, so
    # CKA is the cosine of the vectors a. These have the off-diagonals 0.8, 0.2, 0.2 of papers.md section 10.
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    third = (0.2, 0.2 / 3, math.sqrt(1 - 0.2**2 - (0.2 / 3) ** 2))
    strengths = torch.tensor([(1, 0, 0), (0.8, 0.6, 0), third], dtype=torch.float64)
    cka = mf.ops.linear_cka(strengths.sqrt()[:, None] * signs.mT)
    expected = torch.tensor([[1, 0.8, 0.2], [0.8, 1, 0.2], [0.2, 0.2, 1]], dtype=torch.float64)
    torch.testing.assert_close(cka, expected)
    importance = cka.sum(dim=1)
    weights = importance / importance.sum()
    expected = torch.tensor([0.370370, 0.370370, 0.259259], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_sign_patterns_have_squared_correlation():
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, 1, -1, -1]])[..., None]
    expected = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(mf.ops.linear_cka(signs), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("row", ["random", "zero"])
def test_equal_rows_have_no_similarity_and_a_finite_gradient(dtype, debiased, row):
    x = representations(3, 7, 5, dtype)
    x[1] = x[1, :1] if row == "random" else 0
    x.requires_grad_()
    got = mf.ops.linear_cka(x, debiased=debiased)
    assert torch.equal(got[1], torch.tensor([0.0, 1, 0], dtype=torch.float64))
    assert got[0, 2] != 0
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[1], torch.zeros_like(gradient[1]))


def test_rows_that_differ_in_scale_only_are_equal():
    x = representations(2, 30, 8, torch.float32)
    x[0] = x[0, :1] * torch.linspace(0.5, 3, 30)[:, None]
    assert torch.equal(mf.ops.linear_cka(x), torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_client_stays_in_its_row_and_column(debiased, backend, value):
    x = representations()
    others = [0, 1, 3]
    with mf.use_backend(backend):
        expected = mf.ops.linear_cka(x[others], debiased=debiased)
        x[2, 5, 1] = value
        x.requires_grad_()
        got = mf.ops.linear_cka(x, debiased=debiased)
        (gradient,) = torch.autograd.grad(got[others][:, others].sum(), x)
    assert got[2].isnan().all()
    assert got[:, 2].isnan().all()
    torch.testing.assert_close(got[others][:, others], expected)
    assert torch.isfinite(gradient[others]).all()


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("columns", [3, 20])
def test_gradcheck(debiased, columns):
    x = representations(3, 6, columns).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mf.ops.linear_cka(x, debiased=debiased), x)


def test_debiased_does_not_see_similarity_in_wide_noise():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 500, generator=g, dtype=torch.float64)
    assert mf.ops.linear_cka(x)[0, 1] > 0.9
    assert abs(mf.ops.linear_cka(x, debiased=True)[0, 1]) < 0.3


@pytest.mark.parametrize("debiased", [False, True])
def test_transforms(debiased):
    x = representations(6).reshape(2, 3, 12, 6)
    weight = torch.rand(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(x):
        return (mf.ops.linear_cka(x, debiased=debiased) * weight).sum()

    def gradient(one):
        leaf = one.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    values, gradients = torch.stack([loss(one) for one in x]), torch.stack([gradient(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(loss)(x), values)
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), gradients[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), gradients)
    nested = torch.func.vmap(torch.func.vmap(torch.func.grad(loss)))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(nested[0], gradients)
    torch.testing.assert_close(torch.func.jacrev(loss)(x[0]), gradients[0])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], gradients[0])


def test_one_representation():
    assert torch.equal(mf.ops.linear_cka(representations(1)), torch.ones(1, 1, dtype=torch.float64))


def test_arrays_of_other_libraries():
    x = representations()
    expected = mf.ops.linear_cka(x)
    array = x.numpy().copy()
    assert torch.equal(mf.ops.linear_cka(array), expected)
    array.flags.writeable = False
    assert torch.equal(mf.ops.linear_cka(array), expected)
    assert torch.equal(mf.ops.linear_cka(list(array)), expected)


@pytest.mark.parametrize(
    ("features", "debiased", "error", "words"),
    [
        (torch.zeros(3, 4), False, ValueError, r"features must be \[K, n, d\].*shape \[3, 4\]"),
        (torch.zeros(3, 0, 4), False, ValueError, "no empty axis"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), False, TypeError, "features must be float64.*int64"),
        ([], False, ValueError, "at least one tensor"),
        ([torch.zeros(3, 4), torch.zeros(5, 4)], False, ValueError, r"features\[1\] must be \[n, d\]"),
        ([torch.zeros(3, 4), torch.zeros(3, 4).double()], False, TypeError, "share a dtype"),
        ([torch.zeros(3, 4), "x"], False, TypeError, r"features\[1\] must be a tensor"),
        (torch.zeros(2, 3, 4), True, ValueError, "at least 4 rows for debiased=True; got 3"),
    ],
)
def test_wrong_input_is_named(features, debiased, error, words):
    with pytest.raises(error, match=words):
        mf.ops.linear_cka(features, debiased=debiased)
