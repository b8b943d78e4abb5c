"""The data of a federation: tasks, the clients that hold their rows, and which modalities are there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, compress
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmfl_fast.data.client_rows import ClientRows

if TYPE_CHECKING:
    from mmfl_fast.data.pairs.raw import RawPairs

# Clients that are kept once they are made; those of a large population are made anew when asked for.
_MOST_KEPT = 4096


# Equality and hashing go by identity: tensors compare element by element.
@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """Samples of one label space in one or more modalities, spread over clients.

    Attributes:
        name: what tables call it, e.g. ``"mnist"``.
        inputs: modality name -> float32 ``[N, ...]``; an absent modality is a zero tensor of full width.
        present: bool ``[N, M]``, M in the order of ``inputs``.
        labels: int64 ``[N]`` in ``[0, num_classes)``.
        num_classes: number of classes C of the label space, whether or not each occurs.
        owner: int64 ``[N]``, who holds the row, as an index into ``client_names``.
        is_train: bool ``[N]``; the other rows are test rows.
        client_names: one name per client, unique inside the task.
        raw: of image-text pairs what the features were made from, row by row; an absent side is absent
            there too. None for all other tasks.
        server_items: modality -> float32 ``[items, ...]``, complete items of all classes that no client holds
            (:func:`with_server_items`); empty where the server made none.
        mapped: whether ``inputs`` lie in files, of which a batch reads its rows. What makes new inputs, such
            as ``with_missing``, makes them in memory.
    """

    name: str
    inputs: dict[str, Tensor]
    present: Tensor
    labels: Tensor
    num_classes: int
    owner: Tensor
    is_train: Tensor
    client_names: tuple[str, ...]
    raw: RawPairs | None = None
    server_items: dict[str, Tensor] = field(default_factory=dict)
    mapped: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of ``present``'s columns."""
        return tuple(self.inputs)

    @property
    def num_samples(self) -> int:
        """Number of rows N, train and test together."""
        return int(self.labels.shape[0])

    def take(self, rows: Tensor) -> Task:
        """The same task with some of its rows, int64 row numbers in the order wanted."""
        return replace(
            self,
            inputs={modality: x[rows] for modality, x in self.inputs.items()},
            present=self.present[rows],
            labels=self.labels[rows],
            owner=self.owner[rows],
            is_train=self.is_train[rows],
            raw=None if self.raw is None else self.raw.take(rows.tolist()),
            mapped=False,
        )

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name} {list(x.shape[1:])}" for name, x in self.inputs.items())
        num_train = int(self.is_train.sum())
        return (
            f"Task {self.name!r}: {inputs}; {self.num_classes} classes; {len(self.client_names)} clients; "
            f"{num_train} training and {self.num_samples - num_train} test rows"
        )


@dataclass(frozen=True, eq=False)
class Client:
    """One participant: the rows of one task that it holds.

    Attributes:
        index: position in ``Federation.clients``.
        name: ``"<task>/<client>"``.
        task: the task whose rows it holds.
        task_index: position of that task in ``Federation.tasks``.
        train_rows: int64 row numbers of the task, ascending; may be empty.
        test_rows: int64 row numbers of the task, ascending; may be empty.
        modalities: those present in at least one of its training rows (test rows, if it has no others), in
            the task's order.
    """

    index: int
    name: str
    task: Task = field(repr=False)
    task_index: int
    train_rows: Tensor = field(repr=False)
    test_rows: Tensor = field(repr=False)
    modalities: tuple[str, ...]

    @property
    def num_train(self) -> int:
        """Number of training rows n_i."""
        return int(self.train_rows.shape[0])


class Kind(NamedTuple):
    """What clients have in common that differ in their rows alone.

    Attributes:
        task_index: position of their task in ``Federation.tasks``.
        modalities: that they hold, in the task's order.
    """

    task_index: int
    modalities: tuple[str, ...]


class Clients(Sequence[Client]):
    """The clients of a federation, task by task, in the order of each task's ``client_names``.

    A client is made when it is asked for: a million of them take a few arrays.

    Args:
        tasks: of the federation.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tuple(tasks)
        self._rows = [ClientRows(t.owner, t.is_train, t.present, len(t.client_names)) for t in tasks]
        self._first = [0, *accumulate(len(t.client_names) for t in tasks)]
        self._made: dict[int, Client] = {}

    @cached_property
    def num_train(self) -> NDArray[np.int64]:
        """Training rows of each client, ``[K]``."""
        return np.concatenate([rows.num_train for rows in self._rows])

    @cached_property
    def trainable(self) -> NDArray[np.int64]:
        """Indices of those with a training row, ascending."""
        return np.flatnonzero(self.num_train)

    @cached_property
    def tested(self) -> NDArray[np.int64]:
        """Indices of those with a test row, ascending."""
        return np.flatnonzero(np.concatenate([rows.num_test for rows in self._rows]))

    @cached_property
    def task_numbers(self) -> NDArray[np.int64]:
        """Position of each client's task, ``[K]``."""
        return np.repeat(np.arange(len(self._tasks)), np.diff(self._first))

    @cached_property
    def kinds(self) -> tuple[list[Kind], NDArray[np.int64]]:
        """The kinds that occur, in the order of their first clients, and which each client is of, ``[K]``."""
        kinds: list[Kind] = []
        numbers = []
        for number, (task, rows) in enumerate(zip(self._tasks, self._rows, strict=True)):
            _, first, which = np.unique(
                np.packbits(rows.held, axis=1), axis=0, return_index=True, return_inverse=True
            )
            order = np.argsort(first)
            numbers.append(len(kinds) + np.argsort(order)[which.reshape(-1)])
            kinds += [Kind(number, tuple(compress(task.modalities, rows.held[i]))) for i in first[order]]
        return kinds, np.concatenate(numbers)

    def of_task(self, number: int) -> range:
        """Indices of the clients of a task, by its position."""
        return range(self._first[number], self._first[number + 1])

    def __len__(self) -> int:
        return self._first[-1]

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Client, ...]: ...
    def __getitem__(self, index: int | slice) -> Client | tuple[Client, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        number = range(len(self))[index]
        client = self._made.get(number)
        if client is None:
            client = self._make(number)
            if len(self._made) < _MOST_KEPT:
                # Two threads get the same one.
                client = self._made.setdefault(number, client)
        return client

    def _make(self, index: int) -> Client:
        number = bisect_right(self._first, index) - 1
        task, rows, place = self._tasks[number], self._rows[number], index - self._first[number]
        return Client(
            index=index,
            name=f"{task.name}/{task.client_names[place]}",
            task=task,
            task_index=number,
            train_rows=rows.train(place),
            test_rows=rows.test(place),
            modalities=tuple(compress(task.modalities, rows.held[place])),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Federation:
    """Tasks and their clients; what ``mmfl_fast.run`` trains on.

    Attributes:
        name: what reports call it.
        tasks: one or more; several label spaces and modalities may train together.
    """

    name: str
    tasks: tuple[Task, ...]

    @cached_property
    def clients(self) -> Clients:
        """All clients, task by task, in the order of each task's ``client_names``."""
        return Clients(self.tasks)

    def __repr__(self) -> str:
        head = f"Federation {self.name!r}: {len(self.clients)} clients"
        return "\n  ".join([head, *map(repr, self.tasks)])


def require_federation(name: str, value: object) -> Federation:
    """Return ``value``, or raise if it is no federation; ``name`` is the argument's."""
    if not isinstance(value, Federation):
        raise TypeError(f"{name} must be a Federation, got {type(value).__name__}")
    return value
