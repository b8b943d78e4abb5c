"""The public forms of K long rows, checked and brought to the kernels' canonical form without a copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mmfl_fast.kernels.alike import alike
from mmfl_fast.kernels.rows import row_shape, width
from mmfl_fast.ops.tensors import INTEGER, as_floating, as_tensor, describe, is_floating

RowsLike: TypeAlias = Any
"""A tensor ``[K, ...]``; or a sequence of such tensors, the segments of one long row; or a sequence of K
mappings, or of K sequences, of tensors. NumPy, CuPy and JAX arrays may stand for tensors."""

RowLike: TypeAlias = Any
"""One row in the same form: a tensor, a sequence of segments, or a mapping."""


class Rows(NamedTuple):
    """Rows in canonical form, see :mod:`mmfl_fast.kernels.rows`, and how to give results the same structure.

    Attributes:
        blocks: grid of tensors.
        segments: blocks per line of the grid.
        stacked: whether the first axis of a block runs over rows.
        row_count: K.
        many: builds the structure of several rows from one tensor ``[R, ...]`` per segment.
        one: builds the structure of one row from one tensor ``[...]`` per segment.
    """

    blocks: list[Tensor]
    segments: int
    stacked: bool
    row_count: int
    many: Callable[[list[Tensor]], Any]
    one: Callable[[list[Tensor]], Any]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.blocks[0].device

    @property
    def shapes(self) -> list[torch.Size]:
        """The shape of one row's part in each segment."""
        return [row_shape(block, self.stacked) for block in self.blocks[: self.segments]]

    @property
    def width(self) -> int:
        """P, the number of elements of one row."""
        return width(self.blocks, self.segments, self.stacked)


def _only(tensors: list[Tensor]) -> Tensor:
    return tensors[0]


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__dlpack__")


def as_rows(value: RowsLike, name: str = "rows") -> Rows:
    """Check ``value`` and bring it to canonical form.

    Raises:
        TypeError: no form of rows, or a tensor that is not floating point.
        ValueError: no rows, or rows that do not agree in keys, shapes, dtypes or devices.
    """
    if isinstance(value, Tensor) and is_floating(value) and value.dim() > 0 and value.shape[0] > 0:
        # Said apart, because most calls come here, and the general way would take as long as a small kernel.
        return Rows([value], 1, True, value.shape[0], _only, _only)
    if _is_array(value):
        return _from_segments([value], [name], name, many=_only, one=_only)
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise TypeError(
            f"{name} must be a tensor [K, ...], a sequence of such tensors, or a sequence of K mappings or "
            f"K sequences of tensors; got {type(value).__name__}"
        )
    if not value:
        raise ValueError(f"{name} must hold at least one row; got an empty {type(value).__name__}")
    first = value[0]
    if _is_array(first):
        names = [f"{name}[{s}]" for s in range(len(value))]
        return _from_segments(list(value), names, name, many=list, one=list)
    if isinstance(first, Mapping):
        return _from_mappings(value, name)
    if isinstance(first, Sequence) and not isinstance(first, str):
        return _from_sequences(value, name)
    raise TypeError(f"{name}[0] must be a tensor, a mapping or a sequence; got {type(first).__name__}")


def _from_segments(
    arrays: list[Any],
    names: list[str],
    name: str,
    many: Callable[[list[Tensor]], Any],
    one: Callable[[list[Tensor]], Any],
) -> Rows:
    blocks = list(map(as_floating, arrays, names))
    shapes = [block.shape for block in blocks]
    for shape, label in zip(shapes, names, strict=True):
        if not shape:
            raise ValueError(f"{label} must have a first axis that runs over rows; got a scalar")
    count = shapes[0][0]
    for block, shape, label in zip(blocks[1:], shapes[1:], names[1:], strict=True):
        if shape[0] != count:
            raise ValueError(f"{label} must have {count} rows as {names[0]} has; got shape {tuple(shape)}")
        if block.device != blocks[0].device:
            raise ValueError(f"{label} must be on {blocks[0].device} as {names[0]} is; got {block.device}")
    if count == 0:
        raise ValueError(f"{name} must hold at least one row; got shape {tuple(shapes[0])}")
    return Rows(
        blocks=blocks,
        segments=len(blocks),
        stacked=True,
        row_count=count,
        many=many,
        one=one,
    )


def _from_mappings(mappings: Sequence[Any], name: str) -> Rows:
    first = mappings[0]
    keys = list(first)
    for k, mapping in enumerate(mappings):
        if not isinstance(mapping, Mapping):
            raise TypeError(f"{name}[{k}] must be a mapping as {name}[0] is; got {type(mapping).__name__}")
        if mapping.keys() != first.keys():
            missing = [key for key in keys if key not in mapping]
            extra = [key for key in mapping if key not in first]
            raise ValueError(
                f"{name}[{k}] must have the keys of {name}[0]; missing {missing}, unexpected {extra}"
            )
    return _from_grid(
        [mapping[key] for mapping in mappings for key in keys],
        keys,
        len(mappings),
        name,
        one=lambda parts: dict(zip(keys, parts, strict=True)),
    )


def _from_sequences(sequences: Sequence[Any], name: str) -> Rows:
    length = len(sequences[0])
    for k, sequence in enumerate(sequences):
        if not isinstance(sequence, Sequence) or isinstance(sequence, str):
            raise TypeError(f"{name}[{k}] must be a sequence as {name}[0] is; got {type(sequence).__name__}")
        if len(sequence) != length:
            raise ValueError(f"{name}[{k}] must have {length} tensors as {name}[0] has; got {len(sequence)}")
    return _from_grid(
        [tensor for sequence in sequences for tensor in sequence],
        list(range(length)),
        len(sequences),
        name,
        one=list,
    )


def _from_grid(
    arrays: list[Any],
    keys: list[Any],
    count: int,
    name: str,
    one: Callable[[list[Tensor]], Any],
) -> Rows:
    segments = len(keys)
    if segments == 0:
        raise ValueError(f"{name}[0] must hold at least one tensor; it is empty")
    head = [_as_part(array, f"{name}[0][{key!r}]") for array, key in zip(arrays, keys, strict=False)]
    # Thousands of tensors are looked at together; only when they differ is the culprit looked for.
    blocks = arrays if alike(arrays, segments) else _checked_grid(arrays, head, keys, name)
    return Rows(
        blocks=blocks,
        segments=segments,
        stacked=False,
        row_count=count,
        many=lambda outputs: [one(list(parts)) for parts in zip(*map(torch.unbind, outputs), strict=True)],
        one=one,
    )


def _as_part(array: Any, label: str) -> Tensor:
    part = as_tensor(array, label)
    if part.dtype in INTEGER:
        # The first that everybody passes is a state dict with BatchNorm's num_batches_tracked.
        raise TypeError(
            f"{label} must be floating point; got {describe(part)}: leave counters out, as in "
            "{key: value for key, value in state.items() if value.is_floating_point()}"
        )
    return as_floating(part, label)


def _checked_grid(arrays: list[Any], head: list[Tensor], keys: list[Any], name: str) -> list[Tensor]:
    blocks = []
    for at, array in enumerate(arrays):
        k, s = divmod(at, len(keys))
        label, first = f"{name}[{k}][{keys[s]!r}]", head[s]
        block = _as_part(array, label)
        if block.shape != first.shape:
            raise ValueError(
                f"{label} must have shape {tuple(first.shape)} as in {name}[0]; got {tuple(block.shape)}"
            )
        if block.dtype != first.dtype:
            raise ValueError(f"{label} must have dtype {first.dtype} as in {name}[0]; got {block.dtype}")
        if block.device != head[0].device:
            raise ValueError(f"{label} must be on {head[0].device} as {name}[0] is; got {block.device}")
        blocks.append(block)
    return blocks


def as_origin(origin: str | RowLike | None, rows: Rows, structure: RowsLike) -> list[Tensor]:
    """The tensors of a row to subtract, one per segment; empty for ``"mean"`` and None.

    Args:
        origin: as the public ops take it.
        rows: the rows it belongs to.
        structure: what those rows were made from; a mapping is matched by name.

    Raises:
        TypeError: no row in the form of ``rows``.
        ValueError: a string other than ``"mean"``, or keys, shapes or devices that differ from a row's.
    """
    if origin is None:
        return []
    if isinstance(origin, str):
        if origin != "mean":
            raise ValueError(f'origin must be "mean", None or a row; got {origin!r}')
        return []
    if _is_array(structure):
        arrays, names = [origin], ["origin"]
    elif isinstance(structure[0], Mapping):
        keys = list(structure[0])
        if not isinstance(origin, Mapping):
            raise TypeError(f"origin must be a mapping as the rows are; got {type(origin).__name__}")
        if origin.keys() != structure[0].keys():
            missing = [key for key in keys if key not in origin]
            extra = [key for key in origin if key not in structure[0]]
            raise ValueError(f"origin must have the keys of a row; missing {missing}, unexpected {extra}")
        arrays, names = [origin[key] for key in keys], [f"origin[{key!r}]" for key in keys]
    else:
        if _is_array(origin) or not isinstance(origin, Sequence):
            raise TypeError(
                f"origin must be a sequence of {rows.segments} tensors; got {type(origin).__name__}"
            )
        if len(origin) != rows.segments:
            raise ValueError(f"origin must hold {rows.segments} tensors; got {len(origin)}")
        arrays, names = list(origin), [f"origin[{s}]" for s in range(rows.segments)]
    tensors = [as_floating(array, label) for array, label in zip(arrays, names, strict=True)]
    for tensor, label, shape in zip(tensors, names, rows.shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(
                f"{label} must have the shape of a row, {tuple(shape)}; got {tuple(tensor.shape)}"
            )
        if tensor.device != rows.device:
            raise ValueError(f"{label} must be on {rows.device} as the rows are; got {tensor.device}")
    return tensors
