import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import laplacian

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.algorithms.clusters import eigengap_clusters, spectral_clusters
from mmfl_fast.algorithms.m3fed import M3Fed, M3FedConfig
from mmfl_fast.federation import Context, Uploads
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.streams import Purpose, torch_generator

SMALL = {"width": 12, "operator_rows": 8, "layers": 2, "batch_size": 8, "local_epochs": 1}


def build(federation, **options):
    algorithm = M3Fed(M3FedConfig(**{**SMALL, **options}))
    state = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))
    return algorithm, state


def one_round(federation, algorithm, state, clients=None):
    clients = list(clients or federation.clients)
    phases = algorithm.client_phases()
    results = [train_clients([c], [algorithm.broadcast(state, c)], phases, 0, 0)[0] for c in clients]
    return clients, [r.params for r in results]


def aggregate(algorithm, state, clients, params):
    uploads = Uploads(clients, [algorithm.upload(p, c) for p, c in zip(params, clients, strict=True)])
    sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    return algorithm.aggregate(state, uploads, sizes / sizes.sum())


def operators_of(state):
    return torch.stack([state.operators[i]["G"] for i in state.operators])


def test_everyone_starts_from_the_same_learner_and_operators(mixed_federation):
    algorithm, state = build(mixed_federation)
    starts = [algorithm.broadcast(state, c) for c in mixed_federation.clients]
    for start in starts:
        assert torch.equal(start["T"], starts[0]["T"])
        assert torch.equal(start["G"], start["T"])
        assert torch.equal(start["f.0.weight"], starts[0]["f.0.weight"])
    torch.testing.assert_close(starts[0]["T"] @ starts[0]["T"].T, torch.eye(8), atol=1e-5, rtol=0)


def test_each_phase_moves_its_parts_and_no_other(mixed_federation):
    algorithm, state = build(mixed_federation)
    client = mixed_federation.clients[0]
    start = algorithm.broadcast(state, client)
    personal, shared = algorithm.client_phases()
    (after,) = train_clients([client], [start], [personal], 0, 0)
    moved = {n for n in start if not torch.equal(start[n], after.params[n])}
    assert {n.split(".")[0] for n in moved} == {"phi", "T", "psi"}
    (then,) = train_clients([client], [after.params], [shared], 0, 0)
    moved = {n for n in start if not torch.equal(after.params[n], then.params[n])}
    assert {n.split(".")[0] for n in moved} == {"f", "G"}


def test_loss_is_cross_entropy_and_half_lambda_squared_frobenius(mixed_federation):
    algorithm, state = build(mixed_federation, **{"lambda": 0.6})
    client = mixed_federation.clients[0]
    params = algorithm.broadcast(state, client)
    params["G"] = params["G"] + 0.1
    batch = gather(client.task, client.train_rows)
    expected = F.cross_entropy(algorithm.predict(params, batch.inputs), batch.labels) + 0.3 * 0.01 * 8 * 12
    torch.testing.assert_close(algorithm.loss(params, batch, Context(params, 0)), expected)


@pytest.mark.parametrize("name", ["T", "G"])
def test_the_penalty_pulls_on_both_operators(mixed_federation, name):
    algorithm, state = build(mixed_federation)
    client = mixed_federation.clients[0]
    params = algorithm.broadcast(state, client)
    batch = gather(client.task, client.train_rows)

    def penalty_gradient(gap):
        moved = {
            **params,
            "G": params["T"] + gap,
            name: (params["T"] + (gap if name == "G" else 0.0)).requires_grad_(),
        }
        full = torch.autograd.grad(algorithm.loss(moved, batch, Context(params, 0)), moved[name])[0]
        no_pull, _ = build(mixed_federation, **{"lambda": 0.0})
        bare = torch.autograd.grad(
            no_pull.loss(moved, batch, Context(params, 0)),
            moved[name],
            allow_unused=True,
            materialize_grads=True,
        )[0]
        return full - bare

    sign = 1.0 if name == "G" else -1.0
    torch.testing.assert_close(
        penalty_gradient(0.5), torch.full((8, 12), sign * 0.6 * 0.5), atol=1e-4, rtol=1e-4
    )
    assert penalty_gradient(0.0).abs().max() < 1e-6


def test_g_follows_t_as_an_exponential_average(mixed_federation):
    algorithm, state = build(mixed_federation, momentum=0.0, weight_decay=0.0, batch_size=10**6)
    client = mixed_federation.clients[0]
    start = algorithm.broadcast(state, client)
    start["T"] = start["T"] + 1.0
    shared = algorithm.client_phases()[1]
    (result,) = train_clients([client], [start], [shared], 0, 0)
    assert result.steps == 1
    gap_before, gap_after = (start["G"] - start["T"]).norm(), (result.params["G"] - start["T"]).norm()
    assert math.isclose(gap_after / gap_before, 0.9994, rel_tol=1e-5)


def test_every_shared_tensor_moves_on_the_server(mixed_federation):
    algorithm, state = build(mixed_federation)
    clients, params = one_round(mixed_federation, algorithm, state)
    new = aggregate(algorithm, state, clients, params)
    for client in clients:
        before, after = algorithm.broadcast(state, client), algorithm.broadcast(new, client)
        for name in (n for n in before if n.startswith("f.") or n == "G"):
            assert not torch.equal(before[name], after[name]), name


def test_the_server_step_does_not_depend_on_the_order_of_uploads(mixed_federation):
    algorithm, state = build(mixed_federation, clusters=2)
    clients, params = one_round(mixed_federation, algorithm, state)
    forward = aggregate(algorithm, state, clients, params)
    backward = aggregate(algorithm, state, clients[::-1], params[::-1])
    for client in clients:
        a, b = algorithm.broadcast(forward, client), algorithm.broadcast(backward, client)
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(forward.affinity, backward.affinity, atol=1e-6, rtol=0)


def test_each_cluster_gets_the_plain_mean_of_its_members(mixed_federation):
    algorithm, state = build(mixed_federation, clusters=2)
    clients, params = one_round(mixed_federation, algorithm, state)
    new = aggregate(algorithm, state, clients, params)
    assert len(new.clusters.unique()) == 2
    for client in clients:
        members = [i for i, label in enumerate(new.clusters) if label == new.clusters[client.index]]
        for name in ("f.0.weight", "f.1.bias"):
            expected = torch.stack([params[i][name].double() for i in members]).mean(0).float()
            torch.testing.assert_close(algorithm.broadcast(new, client)[name], expected, atol=1e-7, rtol=1e-6)


def test_cluster_mean_by_data_weights(mixed_federation):
    algorithm, state = build(mixed_federation, clusters=1, cluster_weights="data")
    clients, params = one_round(mixed_federation, algorithm, state)
    new = aggregate(algorithm, state, clients, params)
    sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    stacked = torch.stack([p["f.0.weight"].double() for p in params])
    expected = torch.einsum("k,kij->ij", sizes / sizes.sum(), stacked).float()
    torch.testing.assert_close(
        algorithm.broadcast(new, clients[0])["f.0.weight"], expected, atol=1e-7, rtol=1e-6
    )


def test_consensus_mixes_the_operators_of_others(mixed_federation):
    algorithm, state = build(mixed_federation)
    clients, params = one_round(mixed_federation, algorithm, state)
    new = aggregate(algorithm, state, clients, params)
    torch.testing.assert_close(new.consensus.sum(1), torch.ones(len(clients), dtype=torch.float64))
    uploaded = torch.stack([p["G"].double() for p in params])
    expected = torch.einsum("ij,jmn->imn", new.consensus, uploaded).float()
    torch.testing.assert_close(operators_of(new), expected, atol=1e-6, rtol=1e-5)


def test_literal_equation_seven_underflows_and_the_default_does_not(mixed_federation):
    spread = (
        torch.randn(len(mixed_federation.clients), 8, 12, generator=torch.Generator().manual_seed(0)) * 10
    )
    matrices = {}
    for scale in ("median", 1.0):
        algorithm, state = build(mixed_federation, consensus_scale=scale)
        clients, params = one_round(mixed_federation, algorithm, state)
        params = [{**p, "G": g} for p, g in zip(params, spread, strict=True)]
        matrices[scale] = aggregate(algorithm, state, clients, params).consensus
    assert torch.equal(matrices[1.0], torch.eye(len(spread), dtype=torch.float64))
    off_diagonal = matrices["median"][~torch.eye(len(spread), dtype=torch.bool)]
    assert off_diagonal.min() > 1e-3


@pytest.mark.parametrize("weights", ["uniform", "data"])
def test_without_clustering_everyone_gets_one_mean(mixed_federation, weights):
    algorithm, state = build(mixed_federation, clustering="none", cluster_weights=weights)
    clients, params = one_round(mixed_federation, algorithm, state)
    new = aggregate(algorithm, state, clients, params)
    assert new.clusters.unique().tolist() == [0]
    sizes = torch.tensor([c.num_train if weights == "data" else 1 for c in clients], dtype=torch.float64)
    stacked = torch.stack([p["f.0.bias"].double() for p in params])
    expected = ((sizes / sizes.sum()) @ stacked).float()
    torch.testing.assert_close(
        algorithm.broadcast(new, clients[-1])["f.0.bias"], expected, atol=1e-7, rtol=1e-6
    )


def test_without_the_collaboration_matrix_each_keeps_its_operator(mixed_federation):
    algorithm, state = build(mixed_federation, mixing="none")
    clients, params = one_round(mixed_federation, algorithm, state)
    new = aggregate(algorithm, state, clients, params)
    assert torch.equal(operators_of(new), torch.stack([p["G"] for p in params]))


def test_without_projection_there_is_no_operator(mixed_federation):
    algorithm, state = build(mixed_federation, projection=False)
    params = algorithm.broadcast(state, mixed_federation.clients[0])
    assert {n.split(".")[0] for n in params} == {"phi", "f", "psi"}
    assert params["psi.weight"].shape[1] == 12
    result = mf.run(mixed_federation, "m3fed", rounds=2, config={**SMALL, "projection": False})
    assert "operator_gap" not in result.history[-1]


def test_retraction_keeps_the_rows_orthonormal(mixed_federation):
    for retraction, orthonormal in (("none", False), ("qr", True)):
        state = mf.run(
            mixed_federation, "m3fed", rounds=2, config={**SMALL, "retraction": retraction, "mixing": "none"}
        ).state
        for operator in (state.operators[0]["G"], state.personal[0]["T"]):
            gap = (operator @ operator.T - torch.eye(8)).abs().max()
            assert (gap < 1e-5) == orthonormal


@pytest.mark.parametrize("mode", ["first-order", "hessian-free"])
def test_meta_gradient_switches_change_the_learner(mixed_federation, mode):
    plain = mf.run(mixed_federation, "m3fed", rounds=1, config=SMALL).state
    meta = mf.run(mixed_federation, "m3fed", rounds=1, config={**SMALL, "meta_gradient": mode}).state
    stacked = mf.run(
        mixed_federation, "m3fed", rounds=1, config={**SMALL, "meta_gradient": mode, "chunk": 4}
    ).state
    assert not torch.equal(plain.shared["f.0.weight"], meta.shared["f.0.weight"])
    torch.testing.assert_close(meta.shared["f.0.weight"], stacked.shared["f.0.weight"], atol=1e-5, rtol=1e-4)


def flat(params, part="f."):
    return np.stack(
        [np.concatenate([p[n].double().flatten() for n in p if n.startswith(part)]) for p in params]
    )


def angular(rows, similarity="pearson"):
    rows = rows - rows.mean(0)
    if similarity == "pearson":
        rows = rows - rows.mean(1, keepdims=True)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return 1 - np.arccos(np.clip(unit @ unit.T, -1, 1)) / np.pi


@pytest.mark.parametrize("similarity", ["pearson", "cosine"])
def test_affinity_is_the_angular_similarity_of_updates(mixed_federation, similarity):
    algorithm, state = build(mixed_federation, similarity=similarity)
    clients, params = one_round(mixed_federation, algorithm, state)
    affinity = aggregate(algorithm, state, clients, params).affinity.numpy()
    np.testing.assert_allclose(affinity, angular(flat(params), similarity), atol=1e-4)
    np.testing.assert_array_equal(np.diag(affinity), 1.0)


def test_layerwise_gives_every_layer_one_vote(mixed_federation):
    affinities = {}
    for layerwise in (False, True):
        algorithm, state = build(mixed_federation, layerwise=layerwise)
        clients, params = one_round(mixed_federation, algorithm, state)
        # One layer drowns the other in the whole vector.
        loud = [{n: 100 * t if n.startswith("f.1.") else t for n, t in p.items()} for p in params]
        affinities[layerwise] = aggregate(algorithm, state, clients, loud).affinity.numpy()
    layers = [angular(flat(loud, part)) for part in ("f.0.", "f.1.")]
    np.testing.assert_allclose(affinities[True], (layers[0] + layers[1]) / 2, atol=1e-4)
    np.testing.assert_allclose(affinities[False], layers[1], atol=1e-2)
    assert np.abs(layers[0] - layers[1]).max() > 0.05


def test_models_keep_clusters_where_they_were_and_updates_do_not(mixed_federation):
    groupings = {}
    for compared in ("models", "updates"):
        algorithm, state = build(mixed_federation, clusters=2, compared=compared)
        clients = list(mixed_federation.clients)
        generator = torch.Generator().manual_seed(0)
        base = algorithm.broadcast(state, clients[0])
        directions = [
            {n: torch.randn(t.shape, generator=generator) for n, t in base.items()} for _ in range(2)
        ]
        history = []
        for length, groups in ((1.0, [0, 1] * 4), (0.1, [0, 0, 1, 1] * 2)):
            starts = [algorithm.broadcast(state, c) for c in clients]
            params = [
                {
                    n: t + length * (directions[g][n] + 0.3 * torch.randn(t.shape, generator=generator))
                    if n[0] == "f"
                    else t
                    for n, t in start.items()
                }
                for start, g in zip(starts, groups, strict=True)
            ]
            changed = flat(params) - flat(starts)
            state = aggregate(algorithm, state, clients, params)
            history.append(state.clusters.tolist())
        if compared == "updates":
            np.testing.assert_allclose(state.affinity.numpy(), angular(changed), atol=1e-3)
        groupings[compared] = history
    assert groupings == {
        "models": [[0, 1] * 4, [0, 1] * 4],
        "updates": [[0, 1] * 4, [0, 0, 1, 1] * 2],
    }


def test_clients_that_were_not_drawn_keep_their_learner(mixed_federation):
    algorithm, state = build(mixed_federation, clusters=2)
    state = aggregate(algorithm, state, *one_round(mixed_federation, algorithm, state))
    drawn = mixed_federation.clients[::2]
    new = aggregate(algorithm, state, *one_round(mixed_federation, algorithm, state, drawn))
    for client in mixed_federation.clients[1::2]:
        before, after = algorithm.broadcast(state, client), algorithm.broadcast(new, client)
        assert all(torch.equal(before[n], after[n]) for n in before)
        assert new.clusters[client.index] == state.clusters[client.index]
        assert algorithm.similarity(new)[client.index].isnan().all()
    assert new.members.tolist() == [c.index for c in drawn]
    assert torch.equal(algorithm.similarity(new)[::2, ::2], new.affinity)
    assert new.affinity.shape == new.consensus.shape == (4, 4)
    assert len(new.shared["f.0.weight"]) <= 4


def two_groups(count):
    affinity = torch.full((count, count), 0.3, dtype=torch.float64)
    affinity[::2, ::2] = affinity[1::2, 1::2] = 0.8
    return affinity.fill_diagonal_(1.0)


def test_spectral_clusters_finds_two_groups():
    assert spectral_clusters(two_groups(8), 2).tolist() == [0, 1] * 4


def groups_of(sizes):
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    affinity = torch.where(label[:, None] == label, 0.7, 0.45).double()
    noise = torch.rand(
        len(label), len(label), dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    return (affinity + 0.05 * (noise + noise.T)).fill_diagonal_(1.0), label


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3, 4), (4, 2, 6, 3), (3, 4, 3, 4, 5, 3)])
def test_the_eigengap_finds_the_number_of_groups(sizes):
    affinity, label = groups_of(sizes)
    assert eigengap_clusters(affinity) == len(sizes)
    assert spectral_clusters(affinity, "eigengap").tolist() == label.tolist()


def test_the_eigengap_stops_at_half_the_clients():
    affinity, _ = groups_of((2, 2, 2, 1, 1))
    eigenvalues = np.linalg.eigvalsh(laplacian(affinity.numpy(), normed=True))
    assert np.diff(eigenvalues)[1:].argmax() + 2 == 5
    assert eigengap_clusters(affinity) <= 4


def test_the_eigengap_is_the_largest_step_of_the_spectrum():
    affinity, _ = groups_of((5, 3, 4))
    weights = affinity.numpy() - np.eye(12)
    scale = weights.sum(0) ** -0.5
    eigenvalues = np.sort(np.linalg.eigvals(np.eye(12) - scale[:, None] * weights * scale).real)
    steps = {k: eigenvalues[k] - eigenvalues[k - 1] for k in range(2, 7)}
    assert eigengap_clusters(affinity) == max(steps, key=steps.get) == 3


@pytest.mark.parametrize(
    ("affinity", "expected"),
    [
        (two_groups(3), [0] * 3),
        (torch.ones(1, 1, dtype=torch.float64), [0]),
        (two_groups(4), [0, 1] * 2),
        (torch.full((6, 6), 0.5, dtype=torch.float64).fill_diagonal_(1.0), [0] * 6),
        (torch.eye(5, dtype=torch.float64), [0] * 5),
    ],
)
def test_the_eigengap_of_degenerate_input(affinity, expected):
    assert spectral_clusters(affinity, "eigengap").tolist() == expected


def test_the_eigengap_decides_in_a_run(mixed_federation):
    config = {**SMALL, "clusters": "eigengap"}
    line = mf.run(mixed_federation, "m3fed", rounds=2, config=config).history[-1]
    assert len(set(line["clusters"])) in (2, 3, 4)


def test_clusters_are_compared_with_the_modalities(mixed_federation):
    algorithm, state = build(mixed_federation)
    values = {
        (0,) * 4 + (1,) * 4: 1.0,
        (0,) * 8: 0.0,
        (-1, 0, 0, 0, 1, 1, 1, -1): 1.0,
    }
    for clusters, expected in values.items():
        told = algorithm.metrics(dataclasses.replace(state, clusters=torch.tensor(clusters)))
        assert told["adjusted_rand_index"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("affinity", "clusters", "expected"),
    [
        (two_groups(3), 4, [0, 0, 0]),
        (torch.full((5, 5), 0.5, dtype=torch.float64).fill_diagonal_(1.0), 2, [0] * 5),
        (two_groups(6), 1, [0] * 6),
        (two_groups(4), 4, [0, 1, 2, 3]),
        (torch.ones(1, 1, dtype=torch.float64), 1, [0]),
    ],
)
def test_spectral_clusters_of_degenerate_input(affinity, clusters, expected):
    assert spectral_clusters(affinity, clusters).tolist() == expected


def test_learns_what_can_be_learnt(mixed_federation):
    result = mf.run(mixed_federation, "m3fed", rounds=15, config={**SMALL, "clusters": 2, "local_epochs": 2})
    assert result.final["accuracy"] > 0.8
    assert set(result.final["per_dataset"]) == {"images", "sounds"}


def test_uni_modal_and_multimodal_clients_train_together(mixed_federation):
    result = mf.run(data.with_missing(mixed_federation, rate=0.8, seed=3), "m3fed", rounds=2, config=SMALL)
    assert torch.isfinite(result.final["per_client"]).all()
