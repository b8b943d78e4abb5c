"""How often each client loses each modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.arguments import require_probability, suggestion
from mmfl_fast.data.federation import Federation
from mmfl_fast.data.seeding import stream

# One for all, one per client, or by name of a client or a modality.
Rate = float | Sequence[float] | Mapping[str, float]


@dataclass(frozen=True)
class MissingRates:
    """The rates of one part of the rows.

    Attributes:
        of_tasks: one float64 ``[K, M]`` per task, in [0, 1].
        by_modality: whether they were given by modality; else the columns are equal.
    """

    of_tasks: tuple[NDArray[np.float64], ...]
    by_modality: bool


def missing_rates(fed: Federation, name: str, rate: Rate, spread: float, seed: int) -> MissingRates:
    """Spell out a rate of :func:`~mmfl_fast.data.with_missing`.

    With a spread s > 0 a client's rate is drawn from Beta(q c, (1 - q) c) with c = 1 / s^2 - 1, whose mean
    is the q given and whose standard deviation s sqrt(q (1 - q)). It is read off one uniform draw per client:
    c does not depend on q, so a larger q gives every client a larger rate.

    Args:
        fed: whose clients and modalities.
        name: of the argument, for messages.
        rate: a number; one number per client of ``fed.clients``; or client name, or modality, -> number.
        spread: s, in [0, 1).
        seed: integer >= 0.

    Raises:
        TypeError, ValueError: a value is not as described, or a key is neither a client nor a modality.
    """
    clients = [client.name for client in fed.clients]
    modalities = list(dict.fromkeys(m for task in fed.tasks for m in task.modalities))
    by_modality = isinstance(rate, Mapping) and set(rate) <= set(modalities)
    of_client, of_modality = dict.fromkeys(clients, 1.0), dict.fromkeys(modalities, 1.0)
    if isinstance(rate, Mapping):
        given = _of_names(name, rate, modalities if by_modality else clients, [*modalities, *clients])
        of_client, of_modality = (of_client, given) if by_modality else (given, of_modality)
    elif isinstance(rate, (Sequence, np.ndarray)) and not isinstance(rate, str):
        if len(rate) != len(clients):
            raise ValueError(f"{name} needs one number for each of {len(clients)} clients, got {len(rate)}")
        of_client = {
            c: require_probability(f"{name}[{i}]", q)
            for i, (c, q) in enumerate(zip(clients, rate, strict=True))
        }
    else:
        of_client = dict.fromkeys(clients, require_probability(name, rate))
    spread = require_probability("spread", spread)
    if spread == 1:
        raise ValueError("spread must be below 1, got 1")
    rates = []
    for task in fed.tasks:
        rows = np.array([of_client[f"{task.name}/{c}"] for c in task.client_names])
        means = np.outer(rows, [of_modality[m] for m in task.modalities])
        rates.append(_spread_out(means, spread, seed, task.name) if spread else means)
    return MissingRates(tuple(rates), by_modality)


def _of_names(
    name: str, rate: Mapping[str, float], names: Sequence[str], known: Sequence[str]
) -> dict[str, float]:
    """Return the rate of each of ``names``, all clients or all modalities; one not named loses nothing."""
    for key in rate:
        if key not in known:
            told = suggestion(str(key), known)
            raise ValueError(f"{name} names {key!r}, which is neither a modality nor a client{told}")
        if key not in names:
            raise ValueError(
                f"{name} must name either modalities or clients, got both: {', '.join(map(str, rate))}"
            )
    return {n: require_probability(f"{name}[{n!r}]", rate.get(n, 0.0)) for n in names}


def _spread_out(means: NDArray[np.float64], spread: float, seed: int, task_name: str) -> NDArray[np.float64]:
    from scipy.special import betaincinv

    quantile = stream(seed, "missing-rates", task_name).random(len(means))[:, None]
    concentration = 1 / spread**2 - 1
    inside = (means > 0) & (means < 1)
    # Beta is defined for means inside (0, 1) alone; at the ends every client has the mean.
    safe = np.where(inside, means, 0.5)
    drawn = betaincinv(safe * concentration, (1 - safe) * concentration, quantile)
    return np.where(inside, drawn, means)
