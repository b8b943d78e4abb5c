"""Uploads of a round of which each rank holds a part of every tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfl_fast.data import Client
from mmfl_fast.federation.algorithm import Uploads, part_of
from mmfl_fast.federation.ranks import Ranks
from mmfl_fast.federation.row_layout import Signature
from mmfl_fast.federation.tensor_exchange import Layout, part_of_row
from mmfl_fast.ops.shared_rows import SharedRows

Row = dict[str, Tensor]


class SharedUploads(Uploads):
    """As :class:`~mmfl_fast.federation.algorithm.Uploads`, in all ranks of a run.

    ``rows`` gives what ``mf.ops`` read in parts. Whatever an algorithm looks at otherwise is fetched from the
    other ranks, a part such as ``"G"`` of all clients at a time; all ranks do so at the same place, because
    they run the same algorithm.

    Args:
        ranks: of the run.
        clients: of the round.
        rows: this rank's part of what each sent.
        wholes: signature of what each sent.
        device: of the tensors.
    """

    def __init__(
        self,
        ranks: Ranks,
        clients: Sequence[Client],
        rows: Sequence[Row],
        wholes: Sequence[Signature],
        device: torch.device,
    ) -> None:
        super().__init__(clients, rows)
        self._ranks = ranks
        self._device = device
        self._wholes = tuple(wholes)
        self._everybody: SharedUploads = self
        self._positions: tuple[int, ...] = tuple(range(len(rows)))
        self._fetched: dict[str, list[Row]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Stack one name over the clients, ``[K, ...]``."""
        return torch.stack([row[name] for row in self._whole(part_of(name))])

    def rows(self, part: str | None = None) -> Sequence[Row]:
        """K mappings, of everything sent or of one part."""
        chosen = [
            {n: (shape, dtype) for n, shape, dtype in whole if part is None or part_of(n) == part}
            for whole in self._wholes
        ]
        shapes = {name: shape for name, (shape, _) in chosen[0].items()}
        alike = all(other == chosen[0] for other in chosen)
        floating = all(dtype.is_floating_point for _, dtype in chosen[0].values())
        # A rank without a single element has nothing to give to a kernel.
        enough = max((shape.numel() for shape in shapes.values()), default=0) >= self._ranks.world
        if not (alike and floating and enough):
            return self._whole(part)
        return SharedRows(super().rows(part), shapes, self._total, self._joined, lambda: self._whole(part))

    def select(self, positions: Sequence[int]) -> Uploads:
        """The uploads of some of the clients, by position."""
        chosen = SharedUploads(
            self._ranks,
            [self.clients[p] for p in positions],
            [dict(self._rows[p]) for p in positions],
            [self._wholes[p] for p in positions],
            self._device,
        )
        chosen._everybody = self._everybody
        chosen._positions = tuple(self._positions[p] for p in positions)
        return chosen

    def _whole(self, part: str | None) -> list[Row]:
        """Whole rows of these clients."""
        everybody = self._everybody
        names = {part_of(name): None for whole in everybody._wholes for name, _, _ in whole}
        for each in names if part is None else [part]:
            if each not in everybody._fetched:
                rows = [{n: t for n, t in row.items() if part_of(n) == each} for row in everybody._rows]
                wholes = [tuple(e for e in whole if part_of(e[0]) == each) for whole in everybody._wholes]
                everybody._fetched[each] = self._join(rows, wholes)
        fetched = everybody._fetched
        if part is not None:
            return [fetched[part][p] if part in fetched else {} for p in self._positions]
        return [
            {name: fetched[part_of(name)][p][name] for name in self._rows[at]}
            for at, p in enumerate(self._positions)
        ]

    def _joined(self, rows: list[Row]) -> list[Row]:
        """Whole rows from parts of rows like those of the clients."""
        whole = {name: (shape, dtype) for name, shape, dtype in self._wholes[0]}
        return self._join(rows, [tuple((name, *whole[name]) for name in row) for row in rows])

    def _join(self, rows: Sequence[Row], wholes: Sequence[Signature]) -> list[Row]:
        ranks = self._ranks
        layout = Layout.of_signatures(wholes)
        parts = [layout.part(rank, ranks.world) for rank in range(ranks.world)]
        own = parts[ranks.rank].pack(rows, self._device)
        buffers = ranks.swap([own] * ranks.world, [part.size for part in parts])
        every = [part.unpack(buffer) for part, buffer in zip(parts, buffers, strict=True)]
        return [
            {name: torch.cat([parts[p][name] for parts in every]).view(shape) for name, shape, _ in whole}
            for p, whole in enumerate(wholes)
        ]

    def _total(self, own: Tensor) -> Tensor:
        """Sum over ranks, in their order."""
        flat = own.contiguous().view(-1)
        every = self._ranks.swap([flat] * self._ranks.world, [len(flat)] * self._ranks.world)
        return torch.stack(every).sum(dim=0).view(own.shape)


def share_uploads(
    ranks: Ranks,
    clients: Sequence[Client],
    shares: Sequence[Sequence[int]],
    sent: Sequence[Row],
    layouts: Sequence[Layout],
    device: torch.device,
) -> SharedUploads:
    """Give each rank its part of what all clients sent.

    Args:
        ranks: of the run.
        clients: of the round.
        shares: positions of each rank's clients.
        sent: by this rank's clients.
        layouts: of what the clients of each rank sent.
        device: of the tensors.
    """
    own = layouts[ranks.rank]
    outgoing = [
        own.part(rank, ranks.world).pack([part_of_row(row, rank, ranks.world) for row in sent], device)
        for rank in range(ranks.world)
    ]
    incoming = [layout.part(ranks.rank, ranks.world) for layout in layouts]
    buffers = ranks.swap(outgoing, [layout.size for layout in incoming])
    rows: dict[int, Row] = {}
    wholes: dict[int, Signature] = {}
    for share, layout, part, buffer in zip(shares, layouts, incoming, buffers, strict=True):
        rows.update(zip(share, part.unpack(buffer), strict=True))
        wholes.update(zip(share, layout.signatures(), strict=True))
    order = range(len(clients))
    return SharedUploads(ranks, clients, [rows[p] for p in order], [wholes[p] for p in order], device)
