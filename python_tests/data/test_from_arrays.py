from __future__ import annotations

import numpy as np
import pytest
import torch

from mmfl_fast.data import dirichlet, from_arrays, with_missing

X = np.arange(12, dtype=np.float64).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])
WHO = np.array([10, 10, 2, 2, 7, 7])
SPLIT = np.array(["train", "test", "train", "test", "train", "train"])


def only_task(*args, **kwargs):
    (task,) = from_arrays(*args, **kwargs).tasks
    return task


def test_all_fields():
    fed = from_arrays({"acc": X, "gyro": X[:, None, :]}, Y, WHO, SPLIT, name="mine")
    (task,) = fed.tasks
    assert fed.name == task.name == "mine"
    assert task.modalities == ("acc", "gyro")
    assert {m: (tuple(x.shape), x.dtype) for m, x in task.inputs.items()} == {
        "acc": ((6, 2), torch.float32),
        "gyro": ((6, 1, 2), torch.float32),
    }
    assert task.present.dtype == torch.bool
    assert task.present.all()
    assert task.present.shape == (6, 2)
    assert task.labels.dtype == torch.int64
    assert task.labels.tolist() == Y.tolist()
    assert task.num_classes == 3
    assert task.client_names == ("2", "7", "10")
    assert task.owner.tolist() == [2, 2, 0, 0, 1, 1]
    assert task.is_train.tolist() == [True, False, True, False, True, True]
    assert [c.name for c in fed.clients] == ["mine/2", "mine/7", "mine/10"]
    assert [c.train_rows.tolist() for c in fed.clients] == [[2], [4, 5], [0]]
    assert [c.test_rows.tolist() for c in fed.clients] == [[3], [], [1]]


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_any_number_of_modalities_of_any_shape(count):
    shapes = [(8,), (16, 3), (5, 5), (3, 4, 4), (1,), (24, 7)][:count]
    generator = np.random.default_rng(0)
    arrays = {f"m{j}": generator.normal(size=(200, *shape)) for j, shape in enumerate(shapes)}
    labels = np.arange(200) % 4
    present = generator.random((200, count)) < 0.7
    fed = from_arrays(arrays, labels, np.arange(200) // 20, present=present)
    for task in (fed.tasks[0], dirichlet(fed, 5).tasks[0]):
        assert task.modalities == tuple(arrays)
        assert torch.equal(task.present, torch.from_numpy(present))
        for j, (name, shape) in enumerate(zip(arrays, shapes, strict=True)):
            kept = torch.from_numpy(present[:, j])
            assert task.inputs[name].shape == (200, *shape)
            assert not task.inputs[name][~kept].any()
            assert np.array_equal(task.inputs[name][kept], arrays[name][present[:, j]].astype(np.float32))
    (thinned,) = with_missing(fed, 0.8, "client").tasks
    left = torch.zeros(10, count, dtype=torch.bool)
    left.index_put_((thinned.owner[thinned.is_train],), thinned.present[thinned.is_train], accumulate=True)
    assert left.any(dim=1).all()
    assert not left.all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "bool", "float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "list"])
def test_features_become_float32(dtype, kind):
    array = (X % 2).astype(dtype)
    given = {"numpy": array, "torch": torch.from_numpy(array), "list": array.tolist()}[kind]
    features = only_task({"a": given}, Y, WHO, SPLIT).inputs["a"]
    assert features.dtype == torch.float32
    assert features.tolist() == (X % 2).tolist()


def test_torch_with_gradient_and_bfloat16():
    grad = torch.from_numpy(X).float().requires_grad_()
    half = torch.from_numpy(X).bfloat16()
    task = only_task({"grad": grad, "half": half}, torch.from_numpy(Y), torch.from_numpy(WHO), SPLIT)
    assert not task.inputs["grad"].requires_grad
    assert task.inputs["grad"].tolist() == task.inputs["half"].tolist() == X.tolist()


def test_non_contiguous_and_read_only_input():
    wide = np.arange(48, dtype=np.float32).reshape(6, 8)
    wide.setflags(write=False)
    features = only_task({"a": wide[:, ::-2]}, Y, WHO, SPLIT).inputs["a"]
    assert features.is_contiguous()
    assert features.tolist() == wide[:, ::-2].tolist()


def test_the_arrays_are_copied():
    x, y = X.astype(np.float32), Y.copy()
    task = only_task({"a": x}, y, WHO, SPLIT, present={"a": np.array([True] * 5 + [False])})
    assert x[5].tolist() == [10, 11]
    x[:] = -1
    y[:] = 0
    assert task.inputs["a"][1].tolist() == [2, 3]
    assert task.labels.tolist() == Y.tolist()


def test_one_number_per_sample_is_width_one():
    assert only_task({"a": X[:, 0]}, Y, WHO).inputs["a"].shape == (6, 1)


@pytest.mark.parametrize(
    ("clients", "names"),
    [
        (["b", "a", "b", "a", "c", "c"], ("a", "b", "c")),
        (np.array([b"b", b"a", b"b", b"a", b"c", b"c"]), ("a", "b", "c")),
        (np.array(["b", "a", "b", "a", "c", "c"], dtype=object), ("a", "b", "c")),
        (np.array([10, 9, 10, 9, 100, 100], dtype=object), ("9", "10", "100")),
        (np.array([10.0, 9.0, 10.0, 9.0, 100.0, 100.0]), ("9", "10", "100")),
        ([1, -1, 1, -1, 2, 2], ("-1", "1", "2")),
    ],
)
def test_client_ids(clients, names):
    task = only_task({"a": X}, Y, clients)
    assert task.client_names == names
    assert task.owner.tolist() == [1, 0, 1, 0, 2, 2]


@pytest.mark.parametrize(
    "form", [list, np.array, lambda s: np.array(s, dtype="S5"), lambda s: np.array(s, object)]
)
def test_split_forms(form):
    task = only_task({"a": X}, Y, WHO, form(SPLIT.tolist()))
    assert task.is_train.tolist() == (SPLIT == "train").tolist()


def test_split_of_bytes_objects():
    split = np.array([b"train", "test", "train", b"test", "train", "train"], dtype=object)
    assert only_task({"a": X}, Y, WHO, split).is_train.tolist() == (SPLIT == "train").tolist()


@pytest.mark.parametrize("labels", [Y.astype(np.uint8), Y.astype(np.float64), Y.tolist(), Y.astype(object)])
def test_label_forms(labels):
    assert only_task({"a": X}, labels, WHO).labels.tolist() == Y.tolist()


def test_boolean_labels():
    task = only_task({"a": X}, Y > 0, WHO)
    assert task.labels.tolist() == [0, 1, 1, 0, 1, 1]
    assert task.num_classes == 2


def test_num_classes_may_exceed_the_labels():
    assert only_task({"a": X}, Y, WHO, num_classes=9).num_classes == 9


@pytest.mark.parametrize(
    ("held", "tests"), [(1, 0), (2, 1), (3, 1), (5, 1), (7, 1), (8, 2), (10, 2), (99, 20), (1000, 200)]
)
def test_default_split_is_eighty_twenty_inside_each_client(held, tests):
    who = np.concatenate([np.zeros(held), np.ones(50)]).astype(int)
    fed = from_arrays({"a": np.zeros((who.size, 1))}, np.zeros(who.size, int), who)
    assert len(fed.clients[0].test_rows) == tests
    assert fed.clients[0].num_train == held - tests
    assert len(fed.clients[1].test_rows) == 10


def test_default_split_depends_on_the_seed_only():
    who = np.repeat(np.arange(4), 50)
    splits = [
        only_task({"a": np.zeros((200, 1))}, np.zeros(200, int), who, seed=seed, name=name).is_train.tolist()
        for seed, name in [(0, "x"), (0, "y"), (1, "x")]
    ]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_default_split_spreads_over_the_rows():
    tested = ~only_task({"a": np.zeros((1000, 1))}, np.zeros(1000, int), np.zeros(1000, int)).is_train
    assert 60 < int(tested[:500].sum()) < 140


def test_client_ids_may_be_hashes_of_64_bits():
    ids = np.array([2**64 - 1, 5, 2**63], dtype=np.uint64).repeat(2)
    assert only_task({"a": X}, Y, ids).client_names == ("5", str(2**63), str(2**64 - 1))


@pytest.mark.parametrize("form", ["array", "mapping", "partial", "integers"])
def test_absent_modalities_are_zeroed_whatever_they_held(form):
    a, b = X.copy(), X.copy() + 1
    b[3] = np.nan
    mask = np.ones((6, 2), dtype=bool)
    mask[3, 1] = False
    present = {
        "array": mask,
        "mapping": {"a": mask[:, 0], "b": mask[:, 1]},
        "partial": {"b": torch.from_numpy(mask[:, 1])},
        "integers": mask.astype(int),
    }[form]
    task = only_task({"a": a, "b": b}, Y, WHO, SPLIT, present=present)
    assert task.present.tolist() == mask.tolist()
    assert task.inputs["b"][3].tolist() == [0, 0]
    assert task.inputs["b"][2].tolist() == [5, 6]
    assert task.inputs["a"].tolist() == X.tolist()


def with_nan(row):
    x = X.copy()
    x[row, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"modalities": {"a": X, "b": X[:5]}}, ValueError, r"modalities\['b'\] has 5 rows, but labels has 6"),
        ({"clients": WHO[:5]}, ValueError, "clients has 5 rows, but labels has 6"),
        (
            {"clients": [1, "a"] * 3},
            TypeError,
            "clients must hold integers or strings, not both, got 1 in row 0",
        ),
        ({"clients": ["a", np.nan] * 3}, TypeError, "not both, got nan in row 1"),
        ({"labels": np.full(6, 2**63, np.uint64)}, ValueError, "labels must fit in 64 signed bits"),
        ({"modalities": {"a": torch.tensor(X).to_sparse()}}, TypeError, r"modalities\['a'\] must be a dense"),
        (
            {"modalities": {"a": torch.tensor(X, device="meta")}},
            TypeError,
            r"modalities\['a'\] cannot be read",
        ),
        (
            {"clients": np.array([b"a", b"\xff"] * 3)},
            ValueError,
            r"clients must be UTF-8, got b'\\xff' in row 1",
        ),
        ({"modalities": {"a": np.ma.masked_less(X, 0)}}, TypeError, r"modalities\['a'\] is a masked array"),
        ({"split": SPLIT[:5]}, ValueError, "split has 5 rows, but labels has 6"),
        ({"labels": [2**70, *Y[1:]]}, ValueError, "labels must fit in 64 signed bits"),
        ({"labels": Y[:5]}, ValueError, "clients has 6 rows, but labels has 5"),
        ({"modalities": {}}, ValueError, "modalities is empty"),
        ({"modalities": X}, TypeError, "modalities must be a mapping from name to array, got ndarray"),
        ({"modalities": {3: X}}, TypeError, "keys of modalities must be non-empty strings, got 3"),
        (
            {"modalities": {"a": with_nan(4)}},
            ValueError,
            r"modalities\['a'\] is not finite .* first in row 4",
        ),
        ({"modalities": {"a": X + np.inf}}, ValueError, r"modalities\['a'\] is not finite .* in 6 of 6 rows"),
        ({"modalities": {"a": X * 1e300}}, ValueError, "not finite in float32"),
        ({"modalities": {"a": X[:, :0]}}, ValueError, r"width zero: shape \(6, 0\)"),
        ({"modalities": {"a": X.astype(complex)}}, TypeError, "real numbers, got dtype complex128"),
        ({"modalities": {"a": X.astype(str)}}, TypeError, r"real numbers, got dtype <U"),
        ({"modalities": {"a": [[1, 2], [3]]}}, ValueError, r"modalities\['a'\] cannot be read as an array"),
        ({"modalities": {"a": np.float64(3)}}, ValueError, "got a single number"),
        ({"labels": np.array([], dtype=int)}, ValueError, "labels is empty"),
        ({"labels": Y - 1}, ValueError, r"labels must lie in 0..C-1, got -1 in row 0"),
        ({"labels": Y + 0.5}, ValueError, "labels must hold integers, got 0.5 in row 0"),
        ({"labels": Y + np.nan}, ValueError, "labels must hold integers, got nan in row 0"),
        ({"labels": Y.astype(str)}, TypeError, "labels must hold integers, got dtype <U"),
        ({"labels": ["cat", *Y[1:]]}, TypeError, "labels must hold integers, got 'cat' in row 0"),
        ({"labels": [*Y[:5], None]}, TypeError, "labels must hold integers, got None in row 5"),
        ({"labels": Y[:, None]}, ValueError, r"labels must have shape \[samples\], got shape \(6, 1\)"),
        ({"num_classes": 2}, ValueError, "num_classes is 2, but labels reach 2"),
        ({"num_classes": 3.0}, TypeError, "num_classes must be an integer"),
        ({"clients": WHO + 0.5}, ValueError, "clients must hold integers, got 10.5 in row 0"),
        ({"clients": WHO > 5}, TypeError, "clients must be integers or strings, got dtype bool"),
        (
            {"clients": np.array([1, "a", 1, 1, 1, 1], dtype=object)},
            TypeError,
            "clients must hold integers or strings, not both, got 1 in row 0",
        ),
        (
            {"split": np.where(SPLIT == "test", "val", SPLIT)},
            ValueError,
            "split must hold 'train' or 'test', got 'val' in row 1",
        ),
        ({"split": SPLIT == "train"}, TypeError, "split must hold the strings 'train' and 'test', got True"),
        ({"split": np.full(6, "test")}, ValueError, "split has no 'train' row"),
        ({"name": ""}, TypeError, "name must be a non-empty string"),
        ({"seed": -1, "split": None}, ValueError, "seed must be >= 0, got -1"),
        ({"present": {"b": np.ones(6, bool)}}, ValueError, "present names the unknown modality 'b'"),
        ({"present": np.ones((6, 2), bool)}, ValueError, r"present must have shape \(6, 1\), got \(6, 2\)"),
        ({"present": {"a": np.full(6, 2)}}, TypeError, r"present\['a'\] must hold booleans, got dtype int64"),
        ({"present": {"a": np.full(6, "yes")}}, TypeError, "must hold booleans, got dtype <U3"),
    ],
)
def test_wrong_input_is_named(arguments, error, message):
    valid = {"modalities": {"a": X}, "labels": Y, "clients": WHO, "split": SPLIT}
    with pytest.raises(error, match=message):
        from_arrays(**{**valid, **arguments})
