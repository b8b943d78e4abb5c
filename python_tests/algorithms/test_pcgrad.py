import pytest
import torch

from mmfl_fast.algorithms.pcgrad import project_conflicts
from mmfl_fast.federation import Uploads


def cyclic_orders(count):
    return torch.stack([torch.arange(count).roll(-i) for i in range(count)])


def by_hand(updates, orders):
    """The paper's algorithm 1, one update at a time."""
    projected = updates.clone()
    for i, order in enumerate(orders.tolist()):
        for j in order:
            inner = projected[i] @ updates[j]
            if i != j and inner < 0:
                projected[i] -= inner / (updates[j] @ updates[j]) * updates[j]
    return projected


def test_worked_value():
    updates = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    projected = project_conflicts(updates @ updates.T, cyclic_orders(2)) @ updates
    expected = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(projected, expected)
    torch.testing.assert_close(projected.mean(0), torch.tensor([0.25, 0.75], dtype=torch.float64))


def test_projections_use_the_original_updates_of_the_others():
    generator = torch.Generator().manual_seed(3)
    updates = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    orders = torch.stack([torch.randperm(7, generator=generator) for _ in range(7)])
    projected = project_conflicts(updates @ updates.T, orders) @ updates
    torch.testing.assert_close(projected, by_hand(updates, orders))
    assert not torch.allclose(projected, by_hand(updates, orders.flip(1)))


def test_updates_without_conflict_stay_and_a_zero_update_does_no_harm():
    updates = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    combination = project_conflicts(updates @ updates.T, cyclic_orders(3))
    assert torch.equal(combination, torch.eye(3, dtype=torch.float64))


def flat(rows):
    return torch.stack([torch.cat([t.double().flatten() for n, t in r.items() if n[0] == "f"]) for r in rows])


def test_the_server_steps_by_the_weighted_projected_updates(trial):
    run = trial("pcgrad")
    start = flat([run.state.shared])
    # Opposite clients: the conflicts that honest training of one round seldom has.
    opposed = [
        {n: run.state.shared[n] + sign * (p[n] - run.state.shared[n]) for n in run.state.shared}
        for sign, p in zip([1, -1] * 4, run.train(), strict=True)
    ]
    new = run.aggregate(opposed)
    updates = flat(opposed) - start
    uploads = Uploads(run.federation.clients, opposed)
    sizes = torch.tensor([c.num_train for c in run.federation.clients], dtype=torch.float64)
    projected = by_hand(updates, run.algorithm._orders(run.state, uploads))
    expected = start + (sizes / sizes.sum()) @ projected
    torch.testing.assert_close(flat([new.shared]), expected, atol=1e-6, rtol=1e-5)
    products = updates @ updates.T
    assert float(new.conflicts) == pytest.approx(float((products < 0).sum() / 56))
    assert new.conflicts > 0.2


def test_without_conflict_it_is_fedavg_of_the_learner(trial):
    run, plain = trial("pcgrad"), trial("cross-fedavg")
    params = run.train()
    start, moved = run.state.shared, params[0]
    # All updates along the first client's, of different lengths.
    alike = [
        {**p, **{n: start[n] + (1 + i) * (moved[n] - start[n]) for n in start}} for i, p in enumerate(params)
    ]
    mine, theirs = run.aggregate(alike), plain.aggregate(alike)
    assert mine.conflicts == 0
    for name in mine.shared:
        torch.testing.assert_close(mine.shared[name], theirs.models[0][name], atol=1e-6, rtol=1e-5)


def test_orders_change_with_round_and_client_and_not_with_the_company(trial):
    run = trial("pcgrad")
    clients = run.federation.clients
    uploads = Uploads(clients, [{}] * 8)
    orders = run.algorithm._orders(run.state, uploads)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(8).expand(8, 8))
    assert len(set(map(tuple, orders.tolist()))) > 4
    later = run.aggregate(run.train())
    assert not torch.equal(orders, run.algorithm._orders(later, uploads))
    some = [1, 4, 6]
    fewer = run.algorithm._orders(run.state, Uploads([clients[i] for i in some], [{}] * 3))
    for row, i in zip(fewer.tolist(), some, strict=True):
        assert [some[p] for p in row] == [j for j in orders[i].tolist() if j in some]
