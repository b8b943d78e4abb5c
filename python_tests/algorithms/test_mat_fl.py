import math

import pytest
import torch
from sklearn.cluster import AgglomerativeClustering

import mmfl_fast as mf
from mmfl_fast.algorithms.clusters import agglomerative_clusters

SMALL = {"width": 12, "operator_rows": 8, "layers": 2, "batch_size": 8, "local_epochs": 1}


def flat(rows):
    return torch.stack([torch.cat([t.double().flatten() for n, t in r.items() if n[0] == "f"]) for r in rows])


def received(run, new):
    return flat([run.received(new, c) for c in run.federation.clients])


def by_hand(theta, threshold):
    delta = theta - theta.mean(0)
    unit = delta / delta.norm(dim=1, keepdim=True)
    weights = (unit @ unit.T + threshold).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3])
def test_soft_grouping_mixes_by_the_shifted_cosine_of_the_whole_learner(trial, threshold):
    run = trial("mat-fl", threshold=threshold)
    params = run.train()
    new = run.aggregate(params)
    theta = flat(params)
    expected = by_hand(theta, threshold)
    torch.testing.assert_close(new.consensus, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(received(run, new), expected @ theta, atol=1e-6, rtol=1e-5)


def directions(run, angles):
    """Uploads whose updates point at the given angles in a plane and sum to zero."""
    base = run.state.learners[0]
    generator = torch.Generator().manual_seed(0)
    first, second = (
        {n: torch.randn(t.shape, generator=generator) for n, t in base.items()} for _ in range(2)
    )
    total = sum(float((first[n] * second[n]).sum()) for n in base)
    square = sum(float(first[n].square().sum()) for n in base)
    second = {n: second[n] - total / square * first[n] for n in base}
    scale = math.sqrt(square / sum(float(t.square().sum()) for t in second.values()))
    return [
        {n: t + 0.01 * (math.cos(a) * first[n] + math.sin(a) * scale * second[n]) for n, t in base.items()}
        for a in angles
    ]


def test_worked_value_of_soft_grouping(trial):
    run = trial("mat-fl")
    new = run.aggregate(directions(run, [0, math.pi / 2, math.pi, 3 * math.pi / 2] * 2))
    # Own and twin direction have cosine 1, quarter turns 0, the opposite -1, which is cut off.
    expected = (torch.eye(4, dtype=torch.float64) / 2).repeat(2, 2)
    torch.testing.assert_close(new.consensus, expected, atol=1e-3, rtol=0)


def test_hard_grouping_gives_each_cluster_its_plain_mean(trial):
    run = trial("mat-fl", grouping="hard", clusters=2)
    params = run.train()
    new = run.aggregate(params)
    theta = flat(params)
    delta = theta - theta.mean(0)
    model = AgglomerativeClustering(2, metric="cosine", linkage="average").fit(delta.numpy())
    alike = torch.from_numpy(model.labels_[:, None] == model.labels_)
    assert torch.equal(new.clusters[:, None] == new.clusters, alike)
    assert len(new.clusters.unique()) == 2
    expected = alike.double() / alike.sum(1, keepdim=True) @ theta
    torch.testing.assert_close(received(run, new), expected, atol=1e-6, rtol=1e-5)


def test_hard_grouping_finds_the_directions(trial):
    run = trial("mat-fl", grouping="hard", clusters=2)
    new = run.aggregate(directions(run, [0.1, math.pi, 0.0, math.pi - 0.1] * 2))
    assert new.clusters.tolist() == [0, 1, 0, 1] * 2


@pytest.mark.parametrize(("count", "clusters", "expected"), [(3, 4, [0] * 3), (3, 3, [0, 1, 2]), (1, 1, [0])])
def test_agglomerative_clusters_of_degenerate_input(count, clusters, expected):
    similarity = torch.rand(count, count, dtype=torch.float64).fill_diagonal_(1.0)
    assert agglomerative_clusters(similarity, clusters).tolist() == expected


def test_clients_that_were_not_drawn_keep_their_learner(trial):
    run = trial("mat-fl")
    drawn = run.federation.clients[::2]
    new = run.aggregate(run.train(drawn), drawn)
    before, after = flat(run.starts()), received(run, new)
    assert torch.equal(before[1::2], after[1::2])
    assert not torch.equal(before[::2], after[::2])
    assert new.members.tolist() == [c.index for c in drawn]
    assert run.algorithm.similarity(new)[1::2].isnan().all()
    torch.testing.assert_close(new.consensus.sum(1), torch.ones(4, dtype=torch.float64))


def test_metrics(mixed_federation):
    soft = mf.run(mixed_federation, "mat-fl", rounds=1, config=SMALL).history[0]
    hard = mf.run(mixed_federation, "mat-fl", rounds=1, config={**SMALL, "grouping": "hard"}).history[0]
    assert 1 / 8 < soft["self_weight"] <= 1
    assert len(hard["clusters"]) == 8
    assert -1 <= hard["adjusted_rand_index"] <= 1


def test_the_similarity_is_angular(trial):
    run = trial("mat-fl")
    new = run.aggregate(directions(run, [0, math.pi / 2, math.pi, 3 * math.pi / 2] * 2))
    similarity = run.algorithm.similarity(new)
    expected = [[1.0, 0.5, 0.0, 0.5], [0.5, 1.0, 0.5, 0.0], [0.0, 0.5, 1.0, 0.5], [0.5, 0.0, 0.5, 1.0]]
    torch.testing.assert_close(similarity, torch.tensor(expected).double().repeat(2, 2), atol=1e-2, rtol=0)
