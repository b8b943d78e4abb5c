"""Several federations as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mmfl_fast.data.federation import Federation, require_federation


def merge(federations: Sequence[Federation], name: str | None = None) -> Federation:
    """Put the tasks of several federations side by side; clients keep their task and their rows.

    Args:
        federations: at least one; the order of the tasks is kept.
        name: name of the result; the names joined by ``"+"`` if None.

    Raises:
        TypeError: an element is not a ``Federation``, or ``name`` is no name.
        ValueError: there is none, or two tasks have the same name.
    """
    if isinstance(federations, Federation):
        raise TypeError("federations must be a sequence of Federation, got a single Federation")
    if not isinstance(federations, Iterable):
        raise TypeError(f"federations must be a sequence of Federation, got {type(federations).__name__}")
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError(f"name must be a non-empty string, got {name!r}")
    federations = list(federations)
    if not federations:
        raise ValueError("federations is empty; expected at least one Federation")
    for position, fed in enumerate(federations):
        require_federation(f"federations[{position}]", fed)
    tasks = tuple(task for fed in federations for task in fed.tasks)
    repeated = [task for task, count in Counter(task.name for task in tasks).items() if count > 1]
    if repeated:
        raise ValueError(
            f"task names must be unique in a federation, found more than once: {', '.join(repeated)}; "
            "give from_arrays another name"
        )
    return Federation(name="+".join(fed.name for fed in federations) if name is None else name, tasks=tasks)
