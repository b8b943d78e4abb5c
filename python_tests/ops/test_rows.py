from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfl_fast import ops

K = 4


def state_dict() -> dict[str, Tensor]:
    return {"weight": torch.randn(3, 5), "bias": torch.randn(3), "scale": torch.randn(())}


def as_matrix(dicts: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([torch.cat([tensor.flatten() for tensor in d.values()]) for d in dicts])


def every_form(dicts: list[dict[str, Tensor]]) -> dict[str, Any]:
    return {
        "tensor": as_matrix(dicts),
        "segments": [torch.stack([d[key] for d in dicts]) for key in dicts[0]],
        "tuple of segments": tuple(torch.stack([d[key] for d in dicts]) for key in dicts[0]),
        "mappings": dicts,
        "ordered mappings": [OrderedDict(d) for d in dicts],
        "mappings in another order": [dicts[0], *[dict(reversed(d.items())) for d in dicts[1:]]],
        "parameters": [{key: torch.nn.Parameter(t) for key, t in d.items()} for d in dicts],
        "sequences": [list(d.values()) for d in dicts],
        "NumPy": as_matrix(dicts).numpy(),
        "NumPy segments": [torch.stack([d[key] for d in dicts]).numpy() for key in dicts[0]],
        "NumPy mappings": [{key: t.numpy() for key, t in d.items()} for d in dicts],
        "one NumPy mapping": [dicts[0], {key: t.numpy() for key, t in dicts[1].items()}, *dicts[2:]],
    }


@pytest.mark.parametrize("form", every_form([state_dict()] * 2))
def test_every_form_means_the_same(form: str) -> None:
    dicts = [state_dict() for _ in range(K)]
    torch.testing.assert_close(
        ops.gram(every_form(dicts)[form], origin="mean").detach(),
        ops.gram(as_matrix(dicts).double(), origin="mean"),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    "form", ["tensor", "segments", "mappings", "mappings in another order", "sequences", "NumPy"]
)
def test_origin_in_the_form_of_a_row(form: str) -> None:
    dicts, origin = [state_dict() for _ in range(K)], state_dict()
    row = {
        "tensor": as_matrix([origin])[0],
        "segments": list(origin.values()),
        "mappings": dict(reversed(origin.items())),
        "mappings in another order": origin,
        "sequences": tuple(origin.values()),
        "NumPy": as_matrix([origin])[0].numpy(),
    }[form]
    difference = as_matrix(dicts).double() - as_matrix([origin]).double()
    products = ops.gram(every_form(dicts)[form], origin=row)
    torch.testing.assert_close(products, difference @ difference.T, rtol=1e-5, atol=1e-5)


def test_results_have_the_structure_of_the_input() -> None:
    dicts, matrix = [state_dict() for _ in range(K)], torch.rand(2, K)
    forms = every_form(dicts)
    exact = matrix @ as_matrix(dicts)
    assert ops.mix(forms["tensor"].reshape(K, -1, 1), matrix).shape == (2, 19, 1)
    torch.testing.assert_close(ops.mix(forms["tensor"], matrix), exact)
    segments = ops.mix(forms["segments"], matrix)
    assert [tuple(s.shape) for s in segments] == [(2, 3, 5), (2, 3), (2,)]
    mappings = ops.mix(dicts, matrix)
    assert [list(m) for m in mappings] == [list(dicts[0])] * 2
    torch.testing.assert_close(as_matrix(mappings), exact)
    sequences = ops.mix(forms["sequences"], matrix)
    assert [[tuple(t.shape) for t in s] for s in sequences] == [[(3, 5), (3,), ()]] * 2
    one = ops.weighted_mean(dicts, torch.ones(K))
    assert {key: tuple(t.shape) for key, t in one.items()} == {"weight": (3, 5), "bias": (3,), "scale": ()}
    torch.testing.assert_close(as_matrix([one])[0], as_matrix(dicts).mean(dim=0))
    assert [tuple(t.shape) for t in ops.weighted_mean(forms["segments"], torch.ones(K))] == [(3, 5), (3,), ()]
    assert ops.weighted_mean(forms["tensor"], torch.ones(K)).shape == (19,)
    # A result goes straight back in.
    assert ops.gram(mappings).shape == (2, 2)


def test_native_kernels_read_the_callers_memory() -> None:
    array = np.random.default_rng(0).normal(size=(3, 8))
    read_only = array.copy()
    read_only.flags.writeable = False
    for value in (array, read_only, array[::-1][::-1], np.asfortranarray(array)):
        torch.testing.assert_close(ops.gram(value), torch.from_numpy(array @ array.T))
    flipped = ops.gram(array[::-1])
    torch.testing.assert_close(flipped, torch.from_numpy(array @ array.T).flip(0, 1))


def changed(index: int, **tensors: Any) -> list[dict[str, Any]]:
    dicts = [state_dict() for _ in range(K)]
    dicts[index].update(tensors)
    return dicts


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (3.0, TypeError, r"rows must be a tensor .* got float"),
        ({"a": torch.ones(2)}, TypeError, r"rows must be .* got dict"),
        ([], ValueError, "at least one row"),
        (torch.empty(0, 3), ValueError, r"at least one row; got shape \(0, 3\)"),
        (torch.tensor(1.0), ValueError, "first axis"),
        (["a", "b"], TypeError, r"rows\[0\] must be a tensor, a mapping or a sequence; got str"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "rows .*int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "rows .*complex64"),
        ([torch.ones(2, 3), torch.ones(3, 3)], ValueError, r"rows\[1\] must have 2 rows .* \(3, 3\)"),
        ([{}, {}], ValueError, r"rows\[0\] must hold at least one tensor"),
        (
            [state_dict(), state_dict() | {"more": torch.ones(1)}],
            ValueError,
            "unexpected ..more",
        ),
        (
            [state_dict() | {"more": torch.ones(1)}, state_dict()],
            ValueError,
            "missing ..more",
        ),
        ([state_dict(), [torch.ones(1)]], TypeError, r"rows\[1\] must be a mapping"),
        ([[torch.ones(1)], state_dict()], TypeError, r"rows\[1\] must be a sequence"),
        ([[torch.ones(1)], [torch.ones(1)] * 2], ValueError, r"rows\[1\] must have 1 tensors"),
        (changed(2, bias=torch.ones(4)), ValueError, r"rows\[2\]\['bias'\] must have shape \(3,\).*\(4,\)"),
        (changed(1, bias=torch.ones(3).half()), ValueError, r"rows\[1\]\['bias'\].*float32.*float16"),
        (changed(3, bias=torch.ones(3).long()), TypeError, r"rows\[3\]\['bias'\].*int64"),
        (changed(0, bias=torch.ones(3).long()), TypeError, r"rows\[0\]\['bias'\].*int64"),
        (changed(3, bias=[1.0, 2.0, 3.0]), TypeError, r"rows\[3\]\['bias'\].*list"),
        (changed(1, bias=torch.ones(3, device="meta")), ValueError, r"rows\[1\]\['bias'\].*cpu.*meta"),
        (torch.eye(3).to_sparse(), TypeError, "rows must be a dense tensor; got .*torch.sparse_coo"),
        (changed(2, bias=torch.ones(3).to_sparse()), TypeError, r"rows\[2\]\['bias'\] must be a dense"),
        (np.zeros((2, 3), dtype=">f4"), TypeError, "rows cannot be taken through DLPack .* a >f4 array"),
        (np.array([["a"]]), TypeError, "rows cannot be taken through DLPack"),
    ],
)
def test_wrong_rows(rows: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.gram(rows)


@pytest.mark.parametrize(
    ("origin", "error", "message"),
    [
        ("median", ValueError, "origin must be \"mean\", None or a row; got 'median'"),
        (torch.ones(3), TypeError, "origin must be a mapping"),
        ({"weight": torch.ones(3, 5)}, ValueError, r"missing \['bias', 'scale'\]"),
        (state_dict() | {"bias": torch.ones(4)}, ValueError, r"origin\['bias'\].*\(3,\); got \(4,\)"),
        (state_dict() | {"bias": torch.ones(3).int()}, TypeError, r"origin\['bias'\].*int32"),
    ],
)
def test_wrong_origin(origin: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.gram([state_dict() for _ in range(K)], origin=origin)


def test_batch_norm_says_what_to_leave_out() -> None:
    states = [torch.nn.BatchNorm1d(3).state_dict() for _ in range(2)]
    with pytest.raises(TypeError, match=r"rows\[0\]\['num_batches_tracked'\].*is_floating_point"):
        ops.gram(states)
    floating = [{k: v for k, v in state.items() if v.is_floating_point()} for state in states]
    assert ops.weighted_mean(floating, [1, 1]).keys() == floating[0].keys()


def test_wrong_origin_of_segments() -> None:
    with pytest.raises(TypeError, match="origin must be a sequence of 2 tensors; got Tensor"):
        ops.gram([torch.ones(2, 3), torch.ones(2, 4)], origin=torch.ones(3))
    with pytest.raises(ValueError, match="origin must hold 2 tensors; got 1"):
        ops.gram([torch.ones(2, 3), torch.ones(2, 4)], origin=[torch.ones(3)])


def test_importing_the_ops_imports_no_optional_package() -> None:
    script = (
        "import sys, mmfl_fast.ops\n"
        "loaded = {'triton', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
