"""A federation from arrays in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mmfl_fast.data.arguments import require_integer, suggestion
from mmfl_fast.data.federation import Federation, Task
from mmfl_fast.data.mapped import is_mapped, mapped_tensor
from mmfl_fast.data.partition import holdout

Array: TypeAlias = ArrayLike | Tensor

_SPLIT_WORDS = ("train", "test")
_ROWS_AT_A_TIME = 65_536


def from_arrays(
    modalities: Mapping[str, Array],
    labels: Array,
    clients: Array,
    split: Array | None = None,
    name: str = "data",
    *,
    present: Array | Mapping[str, Array] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> Federation:
    """Build a federation of one task from arrays: NumPy, torch, or anything ``np.asarray`` takes.

    The arrays are copied; features become float32. A contiguous float32 ``np.memmap`` stays where it is: its
    rows are read when a batch needs them, and they must not change.

    Args:
        modalities: name -> ``[samples, ...]`` numbers; ``[samples]`` is taken as width 1.
        labels: ``[samples]`` integers 0..C-1 (bool, or float with integer values, will do).
        clients: ``[samples]`` integers or strings, who holds the row; clients are put in sorted order.
        split: ``[samples]`` of ``"train"`` / ``"test"`` (str or bytes), or None for 80/20 at random inside
            each client; a client with one row keeps it for training.
        name: name of the federation and of its task.
        present: which modalities a row has: bool ``[samples, modalities]`` in the order of ``modalities``, or
            modality name -> bool ``[samples]`` (names left out are present everywhere). None: all. The input
            of an absent modality is set to zero and may hold anything before, NaN included; in a
            ``np.memmap`` it has to be zero.
        num_classes: C, where the labels at hand need not reach C-1; None: the largest label plus one.
        seed: draws the 80/20 split.

    Raises:
        TypeError: an argument is not of the type described.
        ValueError: lengths differ, there are no rows or no training rows, a feature has no width or is not
            finite in float32, a label or split word is not as described.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"name must be a non-empty string, got {name!r}")
    names = _modality_names(modalities)
    label_array = _labels(labels)
    count = label_array.size
    client_names, owner = _clients(clients, count)
    is_train = holdout(owner, seed) if split is None else _split(split, count)
    mask = _present(present, names, count)
    inputs = {m: _features(f"modalities[{m!r}]", modalities[m], mask[:, j]) for j, m in enumerate(names)}
    task = Task(
        name=name,
        inputs=inputs,
        present=torch.from_numpy(mask),
        labels=torch.from_numpy(label_array),
        num_classes=_num_classes(num_classes, label_array),
        owner=torch.from_numpy(owner),
        is_train=torch.from_numpy(is_train),
        client_names=client_names,
        mapped=any(is_mapped(_array(m, array)) for m, array in modalities.items()),
    )
    return Federation(name=name, tasks=(task,))


def _modality_names(modalities: Mapping[str, Array]) -> tuple[str, ...]:
    if not isinstance(modalities, Mapping):
        raise TypeError(f"modalities must be a mapping from name to array, got {type(modalities).__name__}")
    if not modalities:
        raise ValueError("modalities is empty; expected at least one name -> array")
    for name in modalities:
        if not isinstance(name, str) or not name:
            raise TypeError(f"the keys of modalities must be non-empty strings, got {name!r}")
    return tuple(modalities)


def _labels(labels: Array) -> NDArray[np.int64]:
    values = _integers("labels", _vector("labels", labels))
    if values.size == 0:
        raise ValueError("labels is empty; expected at least one row")
    if values.min() < 0:
        row = int(np.flatnonzero(values < 0)[0])
        raise ValueError(f"labels must lie in 0..C-1, got {values[row]} in row {row}")
    return values


def _num_classes(num_classes: int | None, labels: NDArray[np.int64]) -> int:
    needed = int(labels.max()) + 1
    if num_classes is None:
        return needed
    if require_integer("num_classes", num_classes, minimum=1) < needed:
        raise ValueError(f"num_classes is {num_classes}, but labels reach {needed - 1}")
    return int(num_classes)


def _clients(clients: Array, count: int) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    values = _vector("clients", clients, count)
    if values.dtype.kind in "SUO":
        ids = _words("clients", values, "integers or strings, not both")
    elif values.dtype.kind == "b":
        raise TypeError("clients must be integers or strings, got dtype bool")
    else:
        # Hashes are often uint64, of which int64 holds only half.
        ids = values if values.dtype.kind == "u" else _integers("clients", values)
    unique, owner = np.unique(ids, return_inverse=True)
    return tuple(str(client) for client in unique.tolist()), owner.astype(np.int64)


def _split(split: Array, count: int) -> NDArray[np.bool_]:
    words = _words("split", _vector("split", split, count), "the strings 'train' and 'test'")
    unknown = ~np.isin(words, _SPLIT_WORDS)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise ValueError(f"split must hold 'train' or 'test', got {str(words[row])!r} in row {row}")
    is_train: NDArray[np.bool_] = words == "train"
    if not is_train.any():
        raise ValueError("split has no 'train' row")
    return is_train


def _present(
    present: Array | Mapping[str, Array] | None, names: Sequence[str], count: int
) -> NDArray[np.bool_]:
    if present is None:
        return np.ones((count, len(names)), dtype=np.bool_)
    if isinstance(present, Mapping):
        mask = np.ones((count, len(names)), dtype=np.bool_)
        for name, column in present.items():
            if name not in names:
                raise ValueError(f"present names the unknown modality {name!r}{suggestion(str(name), names)}")
            mask[:, names.index(name)] = _booleans(f"present[{name!r}]", column, (count,))
        return mask
    return _booleans("present", present, (count, len(names)))


def _features(name: str, value: Array, present: NDArray[np.bool_]) -> Tensor:
    """Return a float32 copy ``[N, ...]`` with zeros where not ``present`` ``[N]``."""
    array = _array(name, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have shape [samples, ...], got a single number")
    _require_length(name, array, present.size)
    if array.ndim == 1:
        array = array[:, None]
    if 0 in array.shape[1:]:
        raise ValueError(f"{name} has features of width zero: shape {array.shape}")
    if is_mapped(array):
        _refuse_broken(name, array, present, zero_where_absent=True)
        return mapped_tensor(array)
    with np.errstate(over="ignore"):
        features = np.array(array, dtype=np.float32, order="C")
    features[~present] = 0.0
    _refuse_broken(name, features, present, zero_where_absent=False)
    return torch.from_numpy(features)


def _refuse_broken(
    name: str, features: NDArray[Any], present: NDArray[np.bool_], zero_where_absent: bool
) -> None:
    """Raise for rows that are not finite; a part of the rows is in memory at a time."""
    broken, first = 0, None
    for start in range(0, present.size, _ROWS_AT_A_TIME):
        rows = features[start : start + _ROWS_AT_A_TIME].reshape(-1, math.prod(features.shape[1:]))
        absent = ~present[start : start + _ROWS_AT_A_TIME]
        if zero_where_absent and rows[absent].any():
            row = start + int(np.flatnonzero(absent & rows.any(axis=1))[0])
            raise ValueError(f"{name} lies in a file and lacks row {row}, which is not zero there")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size and first is None:
            first = start + int(bad[0])
        broken += bad.size
    if broken:
        raise ValueError(
            f"{name} is not finite in float32 (NaN or infinity) in {broken} of {present.size} "
            f"rows, first in row {first}; rows that lack this modality are marked by `present`"
        )


def _booleans(name: str, value: Array, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    array = _array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if array.dtype.kind not in "biu" or not np.isin(array, (0, 1)).all():
        raise TypeError(f"{name} must hold booleans, got dtype {array.dtype}")
    return array.astype(np.bool_)


def _integers(name: str, values: NDArray[np.generic]) -> NDArray[np.int64]:
    if values.dtype.kind == "O":
        for row, value in enumerate(values.tolist()):
            if not isinstance(value, (int, float, np.number)):
                raise TypeError(f"{name} must hold integers, got {value!r} in row {row}")
        raise ValueError(f"{name} must fit in 64 signed bits, got {max(values, key=abs)}")
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold integers, got dtype {values.dtype}")
    if values.dtype.kind == "f":
        numbers = values.astype(np.float64)
        # Beyond 2**53 a float64 no longer tells one integer from the next.
        exact = np.isfinite(numbers) & (np.abs(numbers) <= 2.0**53) & (np.rint(numbers) == numbers)
        if not exact.all():
            row = int(np.flatnonzero(~exact)[0])
            raise ValueError(f"{name} must hold integers, got {values[row]} in row {row}")
    if values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit in 64 signed bits, got {values.max()}")
    return values.astype(np.int64)


def _words(name: str, values: NDArray[np.generic], expected: str) -> NDArray[np.generic]:
    if values.dtype.kind == "U":
        return values
    words = []
    for row, word in enumerate(values.tolist()):
        try:
            words.append(word.decode() if isinstance(word, bytes) else word)
        except UnicodeDecodeError:
            raise ValueError(f"{name} must be UTF-8, got {word!r} in row {row}") from None
        if not isinstance(words[-1], str):
            raise TypeError(f"{name} must hold {expected}, got {word!r} in row {row}")
    return np.asarray(words)


def _vector(name: str, value: Array, count: int | None = None) -> NDArray[np.generic]:
    array = _array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape [samples], got shape {array.shape}")
    if array.dtype.kind in "US" and isinstance(value, Sequence):
        # NumPy has turned numbers among the strings, NaN too, into strings.
        array = np.asarray(value, dtype=object)
    if count is not None:
        _require_length(name, array, count)
    if array.dtype.kind == "O" and all(isinstance(x, (int, float, np.number)) for x in array.tolist()):
        # Columns of data frames are often object arrays of plain numbers.
        return np.asarray(array.tolist())
    return array


def _require_length(name: str, array: NDArray[np.generic], count: int) -> None:
    if array.shape[0] != count:
        raise ValueError(
            f"{name} has {array.shape[0]} rows, but labels has {count}; every array needs one per sample"
        )


def _array(name: str, value: Array) -> NDArray[np.generic]:
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; use to_dense()")
        try:
            # NumPy has no bfloat16.
            tensor = value.detach().cpu()
            array: NDArray[np.generic] = (
                tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            ).numpy()
        except (RuntimeError, TypeError) as error:
            # A meta tensor, another dtype that NumPy lacks, and the like.
            raise TypeError(f"{name} cannot be read as an array: {error}") from None
        return array
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost; "
            "rows that lack a modality are marked by `present`"
        )
    if isinstance(value, np.memmap):
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None
