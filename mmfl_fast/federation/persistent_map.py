"""A mapping from numbers of which every version stays as it is, at the price of what was changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")

_BITS = 5
_MASK = (1 << _BITS) - 1


class PersistentMap(Generic[Value]):
    """An immutable mapping from integers in ``[0, count)``, empty to begin with.

    It is a tree over their digits in base 32. A newer version has new nodes on the way to the numbers that
    changed and shares all others with the older one, so it costs the logarithm of ``count`` for each.

    Args:
        count: numbers that it may have values for.
    """

    def __init__(self, count: int) -> None:
        digits = max(1, -(-max(0, count - 1).bit_length() // _BITS))
        self._shift = _BITS * (digits - 1)
        self._root: dict[int, Any] = {}

    def get(self, number: int) -> Value | None:
        """The value of a number, None if it has none."""
        node: Any = self._root
        for shift in range(self._shift, -1, -_BITS):
            node = node.get(number >> shift & _MASK)
            if node is None:
                return None
        found: Value = node
        return found

    def updated(self, values: Mapping[int, Value]) -> PersistentMap[Value]:
        """The mapping with other values for some numbers; this one stays as it is."""
        newer = object.__new__(type(self))
        newer._shift, newer._root = self._shift, _updated(self._root, values, self._shift)
        return newer

    def changed_since(self, older: PersistentMap[Value]) -> Iterator[int]:
        """Numbers whose values are not those of an older version, ascending; shared nodes are passed over."""
        return _changed(self._root, older._root, 0, self._shift)

    def items(self) -> Iterator[tuple[int, Value]]:
        """Numbers that have a value, ascending, and the values."""
        return _items(self._root, 0, self._shift)


def _updated(node: Mapping[int, Any], values: Mapping[int, Any], shift: int) -> dict[int, Any]:
    newer = dict(node)
    if not shift:
        newer.update((number & _MASK, value) for number, value in values.items())
        return newer
    parts: dict[int, dict[int, Any]] = defaultdict(dict)
    for number, value in values.items():
        parts[number >> shift & _MASK][number] = value
    for digit, part in parts.items():
        newer[digit] = _updated(node.get(digit, {}), part, shift - _BITS)
    return newer


def _changed(node: Mapping[int, Any], older: Mapping[int, Any], first: int, shift: int) -> Iterator[int]:
    for digit in sorted(node):
        if node[digit] is older.get(digit):
            continue
        number = first | digit << shift
        if shift:
            yield from _changed(node[digit], older.get(digit, {}), number, shift - _BITS)
        else:
            yield number


def _items(node: Mapping[int, Any], first: int, shift: int) -> Iterator[tuple[int, Any]]:
    for digit in sorted(node):
        number = first | digit << shift
        if shift:
            yield from _items(node[digit], number, shift - _BITS)
        else:
            yield number, node[digit]
