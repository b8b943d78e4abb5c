"""Messages between clients along a graph with one view per block of their models (papers.md 5.7).

    A^o_kl = softmax_l(cos(Delta_k^o, Delta_l^o) / tau),  r_kl = sum_o A^o_kl / (1 + |Omega_k & Omega_l|)
    theta_k^o <- sum_l A^o_kl r_kl theta_l^o / sum_l A^o_kl r_kl

``Delta`` is what a round's training changed, ``Omega`` the set of modalities held, ``o`` a block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from mmfl_fast import ops
from mmfl_fast.data import Client
from mmfl_fast.federation import ClientState

Views = dict[Hashable, tuple[list[str], list[int]]]
"""View -> parameter names of the block, positions of the clients that share it."""


def pass_messages(
    clients: Sequence[Client],
    rows: Sequence[ClientState],
    starts: Sequence[ClientState],
    views: Views,
    temperature: float,
) -> tuple[list[ClientState], dict[Hashable, Tensor]]:
    """One message along every edge of every view.

    Args:
        clients: K of them.
        rows: what each sent, its blocks after training.
        starts: the same parameters, among others, before it.
        views: of :func:`shared_blocks`.
        temperature: tau.

    Returns:
        For each client the aggregates of the blocks that it sent; and for each view the weights of its
        mix, float64 ``[owners, owners]``, rows summing to 1.
    """
    attention = {
        view: block_attention([{n: rows[k][n] - starts[k][n] for n in names} for k in owners], temperature)
        for view, (names, owners) in views.items()
    }
    factor = next(iter(attention.values())).new_zeros(len(rows), len(rows))
    for view, (_, owners) in views.items():
        factor[torch.tensor(owners).unsqueeze(1), owners] += attention[view]
    factor /= 1 + common_modalities(clients).to(factor)

    received: list[ClientState] = [{} for _ in rows]
    weights: dict[Hashable, Tensor] = {}
    for view, (names, owners) in views.items():
        matrix = attention[view] * factor[torch.tensor(owners).unsqueeze(1), owners]
        weights[view] = matrix / matrix.sum(dim=1, keepdim=True)
        mixed = ops.mix([{n: rows[k][n] for n in names} for k in owners], weights[view])
        for k, block in zip(owners, mixed, strict=True):
            received[k].update(block)
    return received, weights


def shared_blocks(
    clients: Sequence[Client],
    rows: Sequence[ClientState],
    block_of: Callable[[str], str],
    task_blocks: tuple[str, ...],
) -> Views:
    """Find the views: clients share a block where its name and shapes agree.

    Args:
        clients: K of them.
        rows: what each sent.
        block_of: the block of a parameter, by its name.
        task_blocks: blocks that are shared inside a task only.
    """
    views: Views = {}
    for position, (client, row) in enumerate(zip(clients, rows, strict=True)):
        blocks: dict[str, list[str]] = {}
        for name in row:
            blocks.setdefault(block_of(name), []).append(name)
        for block, names in blocks.items():
            task = client.task_index if block in task_blocks else None
            shapes = tuple((n, row[n].shape) for n in names)
            views.setdefault((task, shapes), (names, []))[1].append(position)
    return views


def block_attention(updates: list[dict[str, Tensor]], temperature: float) -> Tensor:
    """``softmax_l(cos(Delta_k, Delta_l) / tau)`` of K updates of one block, float64 ``[K, K]``."""
    return torch.softmax(ops.cosine_similarity(updates, origin=None) / temperature, dim=1)


def common_modalities(clients: Sequence[Client]) -> Tensor:
    """``|Omega_k & Omega_l|``, int64 ``[K, K]``."""
    held = [set(c.modalities) for c in clients]
    return torch.tensor([[len(a & b) for b in held] for a in held])
