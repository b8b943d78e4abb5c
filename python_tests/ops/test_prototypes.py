from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mmfl_fast as mf


def oracle(features, labels, prototypes, temperature=0.1, mask=None, normalize=True):
    """Loss per row in float64 NumPy, one row at a time; NaN marks an ignored row."""
    f, p = np.asarray(features, np.float64), np.asarray(prototypes, np.float64)
    losses = np.full(len(f), np.nan)
    for i, (row, label) in enumerate(zip(f, np.asarray(labels), strict=True)):
        if label == -100 or (mask is not None and not mask[label]):
            continue
        scores = p @ row
        if normalize:
            scores = scores / (np.linalg.norm(p, axis=1) * np.linalg.norm(row))
        scores = scores / temperature
        kept = scores if mask is None else scores[np.asarray(mask)]
        losses[i] = np.log(np.exp(kept - kept.max()).sum()) + kept.max() - scores[label]
    return losses


def problem(rows=11, dims=6, classes=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, dims, generator=g, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, classes, (rows,), generator=g)
    prototypes = torch.randn(classes, dims, generator=g, dtype=torch.float64).to(dtype)
    return features, labels, prototypes


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_reductions_match_the_definition(normalize, masked):
    features, labels, prototypes = problem()
    labels[2] = -100
    mask = torch.tensor([True, True, False, True]) if masked else None
    options = {"temperature": 0.5, "class_mask": mask, "normalize": normalize}
    losses = oracle(features, labels, prototypes, 0.5, mask, normalize)
    assert np.isnan(losses).sum() >= 1 + 2 * masked
    loss = mf.ops.prototype_contrastive_loss
    rows = loss(features, labels, prototypes, reduction="none", **options)
    torch.testing.assert_close(rows, torch.from_numpy(np.nan_to_num(losses)))
    total = loss(features, labels, prototypes, reduction="sum", **options)
    assert total.item() == pytest.approx(np.nansum(losses))
    assert loss(features, labels, prototypes, **options).item() == pytest.approx(np.nanmean(losses))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_defaults(backend):
    features, labels, prototypes = problem()
    with mf.use_backend(backend):
        got = mf.ops.prototype_contrastive_loss(features, labels, prototypes)
    assert got.shape == ()
    assert got.item() == pytest.approx(oracle(features, labels, prototypes, 0.1).mean())


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_feature_orthogonal_to_all_prototypes_costs_log_of_the_classes(classes):
    features = torch.tensor([[0.0, 0.0, 3.0]])
    prototypes = torch.nn.functional.pad(torch.randn(classes, 2), (0, 1))
    got = mf.ops.prototype_contrastive_loss(features, torch.tensor([1]), prototypes)
    assert got.item() == pytest.approx(math.log(classes), rel=1e-6)


def test_numbers_of_numpy_are_numbers():
    features, labels, prototypes = problem()
    loss = mf.ops.prototype_contrastive_loss
    for temperature in (np.float32(0.5), np.float64(0.5)):
        got = loss(features, labels, prototypes, temperature=temperature)
        assert torch.equal(got, loss(features, labels, prototypes, temperature=0.5))
    _, counts = mf.ops.class_prototypes(features, labels, np.int64(4))
    assert len(counts) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_loss_of_half_precision_is_float32(dtype):
    features, labels, prototypes = problem(dtype=dtype)
    got = mf.ops.prototype_contrastive_loss(features, labels, prototypes, reduction="none")
    assert got.dtype == torch.float32
    expected = oracle(features.double(), labels, prototypes.double())
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mask_per_client", [True, False])
def test_clients_in_one_call(shared, mask_per_client):
    clients = [problem(seed=seed) for seed in range(3)]
    features, labels, prototypes = (torch.stack(parts) for parts in zip(*clients, strict=True))
    mask = torch.tensor([[True, True, False, True], [True] * 4, [False, True, True, True]])
    mask = mask if mask_per_client else mask[0]
    expected = np.stack(
        [
            oracle(
                features[b],
                labels[b],
                prototypes[0 if shared else b],
                mask=mask[b] if mask_per_client else mask,
            )
            for b in range(3)
        ]
    )
    arguments = features, labels, prototypes[0] if shared else prototypes
    loss = mf.ops.prototype_contrastive_loss
    rows = loss(*arguments, class_mask=mask, reduction="none")
    torch.testing.assert_close(rows, torch.from_numpy(np.nan_to_num(expected)))
    assert loss(*arguments, class_mask=mask).item() == pytest.approx(np.nanmean(expected))
    in_dims = (0, 0, None if shared else 0, 0 if mask_per_client else None)
    per_client = torch.func.vmap(lambda f, y, p, m: loss(f, y, p, class_mask=m), in_dims)(*arguments, mask)
    torch.testing.assert_close(per_client, torch.from_numpy(np.nanmean(expected, axis=1)))


def test_every_row_ignored_costs_nothing():
    features, _, prototypes = problem()
    features.requires_grad_()
    prototypes.requires_grad_()
    loss = mf.ops.prototype_contrastive_loss(features, torch.full((11,), -100), prototypes)
    gradients = torch.autograd.grad(loss, (features, prototypes))
    assert loss.item() == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction):
    features, labels, prototypes = problem(rows=5)
    labels[1] = -100
    weight = torch.rand(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(f, p):
        value = mf.ops.prototype_contrastive_loss(f, labels, p, temperature=0.3, reduction=reduction)
        return value * weight if reduction == "none" else value

    assert torch.autograd.gradcheck(loss, (features.requires_grad_(), prototypes.requires_grad_()))


def test_transforms_match_the_reference():
    features, labels, prototypes = problem()
    batch = torch.stack([features, 2 + features, -features])
    many_labels = torch.stack([labels, labels.flip(0), (labels + 1) % 4])
    many_prototypes = torch.stack([prototypes, -prototypes, prototypes + 1])
    mask = torch.tensor([[True] * 4, [True, False, True, True], [True] * 4])
    loss = mf.ops.prototype_contrastive_loss
    grad, vmap, jacrev = torch.func.grad, torch.func.vmap, torch.func.jacrev
    both = grad(loss, argnums=(0, 2))
    transforms = {
        "grad": lambda: both(features, labels, prototypes),
        "vmap": lambda: vmap(loss)(batch, many_labels, many_prototypes),
        "vmap(grad)": lambda: vmap(both)(batch, many_labels, many_prototypes),
        "vmap(grad), prototypes shared": lambda: vmap(both, (0, 0, None))(batch, many_labels, prototypes),
        "vmap(grad), features shared": lambda: vmap(both, (None, None, 0))(features, labels, many_prototypes),
        "vmap(grad), labels shared": lambda: vmap(both, (0, None, 0))(batch, labels, many_prototypes),
        "vmap(grad), last axis": lambda: vmap(both, (2, 1, 2), (1, 1))(
            batch.permute(1, 2, 0), many_labels.T, many_prototypes.permute(1, 2, 0)
        ),
        "vmap(grad) with masks": lambda: vmap(
            lambda f, m: grad(lambda f: loss(f, labels, prototypes, class_mask=m))(f)
        )(batch, mask),
        "grad(vmap)": lambda: grad(lambda p: vmap(loss, (0, 0, None))(batch, many_labels, p).square().sum())(
            prototypes
        ),
        "vmap(vmap(grad))": lambda: vmap(vmap(both, (0, 0, None)), (0, 0, 0))(
            torch.stack([batch, batch + 1]), torch.stack([many_labels] * 2), many_prototypes[:2]
        ),
        "vmap(vmap(grad)), inner prototypes": lambda: vmap(vmap(both), (0, 0, None))(
            torch.stack([batch, batch + 1]), torch.stack([many_labels] * 2), many_prototypes
        ),
        "vmap over clients in one call": lambda: vmap(both, (0, 0, None))(
            torch.stack([batch, batch + 1]), torch.stack([many_labels] * 2), many_prototypes
        ),
        "jacrev": lambda: jacrev(lambda f: loss(f, labels, prototypes, reduction="none"))(features),
    }
    for name, transform in transforms.items():
        with mf.use_backend("reference"):
            expected = transform()
        torch.testing.assert_close(transform(), expected, msg=lambda m, name=name: f"{name}: {m}")


# Tracing an autograd.Function under torch.func.grad, dynamo does what it warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False, True])])
def test_compiles_to_one_graph(mask):
    features, labels, prototypes = problem(dtype=torch.float32)

    def loss(f, p):
        return mf.ops.prototype_contrastive_loss(torch.tanh(f), labels, p, class_mask=mask)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = features.requires_grad_(), prototypes.requires_grad_()
    expected = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected)
    gradient = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(features.detach(), prototypes.detach()), expected[0])


def test_label_out_of_range_is_refused_inside_transforms_too():
    features, labels, prototypes = problem()
    labels[3] = 9
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\) or be -100; got 9 at row 3$"):
        mf.ops.prototype_contrastive_loss(features, labels, prototypes)
    with pytest.raises(ValueError, match="got 9 at row 3"):
        torch.func.grad(mf.ops.prototype_contrastive_loss)(features, labels, prototypes)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": float("nan")}, ValueError, "temperature must be positive"),
        ({"temperature": "warm"}, TypeError, "temperature must be a number"),
        ({"reduction": "max"}, ValueError, "reduction must be one of mean, sum, none; got 'max'"),
        ({"features": torch.zeros(11)}, ValueError, "features must be"),
        ({"features": torch.zeros(11, 6, dtype=torch.int64)}, TypeError, "features must be float64"),
        ({"labels": torch.zeros(10, dtype=torch.int64)}, ValueError, r"labels must be \[11\]"),
        ({"labels": torch.zeros(11)}, TypeError, "labels must be integers; got a torch.float32"),
        ({"prototypes": torch.zeros(4, 5)}, ValueError, "prototypes must be"),
        ({"prototypes": torch.zeros(2, 4, 6)}, ValueError, "prototypes must be"),
        ({"prototypes": torch.zeros(0, 6)}, ValueError, "prototypes must be"),
        ({"class_mask": torch.ones(4)}, TypeError, "class_mask must be bool"),
        ({"class_mask": torch.ones(5, dtype=torch.bool)}, ValueError, r"class_mask must be \[C\]"),
        ({"prototypes": torch.zeros(4, 6, device="meta")}, ValueError, "on one device"),
    ],
)
def test_wrong_input_is_named(change, error, words):
    features, labels, prototypes = problem()
    arguments = {"features": features, "labels": labels, "prototypes": prototypes, **change}
    with pytest.raises(error, match=words):
        mf.ops.prototype_contrastive_loss(**arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_class_prototypes_are_the_means(dtype):
    features, labels, _ = problem(rows=40, dtype=dtype)
    labels[labels == 2] = -100
    prototypes, counts = mf.ops.class_prototypes(features, labels, 4)
    expected = [features[labels == c].double().mean(dim=0) if c != 2 else torch.zeros(6) for c in range(4)]
    assert prototypes.dtype == dtype
    torch.testing.assert_close(prototypes, torch.stack([row.to(dtype) for row in expected]))
    assert torch.equal(counts, torch.tensor([(labels == c).sum() for c in range(4)]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8])
def test_labels_of_any_integer_type(dtype):
    features, labels, prototypes = problem()
    small = labels.numpy().astype(dtype)
    assert torch.equal(mf.ops.class_prototypes(features, small, 4)[1], torch.bincount(labels, minlength=4))
    loss = mf.ops.prototype_contrastive_loss(features, small, prototypes)
    assert loss == mf.ops.prototype_contrastive_loss(features, labels, prototypes)


def test_class_prototypes_without_rows():
    prototypes, counts = mf.ops.class_prototypes(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2)
    assert torch.equal(prototypes, torch.zeros(2, 3))
    assert torch.equal(counts, torch.zeros(2, dtype=torch.int64))


def test_class_prototypes_keep_nan_in_its_class():
    features, labels, _ = problem()
    features[0, 2] = torch.nan
    prototypes, _ = mf.ops.class_prototypes(features, labels, 4)
    others = [c for c in range(4) if c != labels[0]]
    assert prototypes[labels[0], 2].isnan()
    assert torch.isfinite(prototypes[others]).all()


def test_class_prototypes_differentiate_and_transform():
    features, labels, _ = problem()
    labels[1] = -100
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: mf.ops.class_prototypes(f, labels, 5)[0], features)
    batch, many = torch.stack([features, 2 * features]).detach(), torch.stack([labels, labels.flip(0)])

    def loss(f, y):
        return mf.ops.class_prototypes(f, y, 5)[0].square().sum()

    expected = torch.stack([torch.func.grad(loss)(f, y) for f, y in zip(batch, many, strict=True)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch, many), expected)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch[0], labels), loss(batch[0], labels))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"num_classes": 2.0}, TypeError, "num_classes must be an integer"),
        ({"num_classes": 2}, ValueError, r"labels must lie in \[0, 2\) or be -100; got [23] at row"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, ValueError, r"labels must be \[11\]"),
        ({"labels": torch.full((11,), -1)}, ValueError, "got -1 at row 0"),
        ({"features": torch.zeros(11)}, ValueError, r"features must be \[N, D\]"),
        ({"features": None}, TypeError, "features must be a tensor"),
    ],
)
def test_class_prototypes_name_wrong_input(change, error, words):
    features, labels, _ = problem()
    arguments = {"features": features, "labels": labels, "num_classes": 4, **change}
    with pytest.raises(error, match=words):
        mf.ops.class_prototypes(**arguments)
