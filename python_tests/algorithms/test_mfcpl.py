import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmfl_fast as mf
from mmfl_fast import data, nn, ops
from mmfl_fast.algorithms.mfcpl import (
    batch_prototype_regression,
    modality_alignment,
    prototype_contrast,
    prototype_regression,
)
from mmfl_fast.algorithms.prototype_exchange import local_prototypes, mean_prototypes
from mmfl_fast.federation import Batch, Context, Inputs, part_of
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.checkpoints import state_tensors
from mmfl_fast.federation.client_workers import one_torch_thread

WEIGHTS = ("cmpr", "cmpc", "cma")
NONE = dict.fromkeys(WEIGHTS, 0.0)


def only(term):
    """Options under which cross-entropy and one more term of the loss are left."""
    return {**NONE, term: 1.0}


def thinned(federation, rate=1.0, seed=3):
    """Clients of the two modalities and of either one."""
    return data.with_missing(federation, rate=rate, seed=seed)


@pytest.fixture
def second_round(trial, toy_federation):
    """``second_round(cmpr=0.0)``: a trial that has prototypes."""

    def build(federation=None, **options):
        run = trial("mfcpl", federation=federation or thinned(toy_federation), **options)
        return type(run)(run.algorithm, run.aggregate(run.train()), run.federation)

    return build


def gradients(run, client):
    """Of the loss on all training rows of a client, less the gradients of cross-entropy alone."""
    start = run.algorithm.broadcast(run.state, client)
    batch = gather(client.task, client.train_rows)
    moving = {n: t for n, t in start.items() if part_of(n) in run.algorithm.trained}
    plain = type(run.algorithm)(run.algorithm.config.model_copy(update=NONE))

    def of(algorithm):
        return torch.func.grad(lambda p: algorithm.loss({**start, **p}, batch, Context(start, 1)))(moving)

    with one_torch_thread():
        found, base = of(run.algorithm), of(plain)
    return {n: found[n] - base[n] for n in moving}


def largest(found, prefix):
    return max(float(g.abs().max()) for n, g in found.items() if n.startswith(prefix))


# What the terms are.


def some_rows():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(5, 4, generator=generator)
    complete = torch.randn(3, 4, generator=generator)
    return u, torch.tensor([0, 2, 0, -100, 1]), complete, torch.tensor([True, False, True])


def test_regression_counts_rows_whose_class_has_a_prototype():
    u, labels, complete, known = some_rows()
    expected = sum(((u[i] - complete[k]) ** 2).mean() for i, k in ((0, 0), (1, 2), (2, 0))) / 3
    torch.testing.assert_close(prototype_regression(u, labels, complete, known), expected)
    assert prototype_regression(u, labels, complete, torch.zeros(3, dtype=torch.bool)) == 0


def test_regression_of_batch_means():
    u, labels, complete, known = some_rows()
    expected = ((u[[0, 2]].mean(0) - complete[0]) ** 2).mean() + ((u[1] - complete[2]) ** 2).mean()
    torch.testing.assert_close(batch_prototype_regression(u, labels, complete, known), expected)


def test_a_feature_orthogonal_to_all_prototypes_has_contrast_ln_c():
    v = torch.tensor([[[0.0, 0.0, 0.0, 2.0]]])
    everything = torch.ones(1, 1, dtype=torch.bool), torch.tensor([1]), torch.eye(4)[:3]
    value = prototype_contrast(v, *everything, torch.ones(3, dtype=torch.bool), 0.1)
    assert float(value) == pytest.approx(math.log(3))
    two = prototype_contrast(v, *everything, torch.tensor([True, True, False]), 0.1)
    assert float(two) == pytest.approx(math.log(2))


def test_contrast_is_the_mean_over_rows_of_the_mean_over_their_modalities():
    _, labels, complete, known = some_rows()
    v = torch.randn(3, 5, 4)
    present = torch.tensor(
        [[True, True, True], [True, False, False], [False, True, True], [True] * 3, [True] * 3]
    )
    logits = F.normalize(v, dim=2) @ F.normalize(complete[known], dim=1).T / 0.2
    kept = {0: 0, 2: 1}
    rows = [
        torch.stack(
            [
                F.cross_entropy(logits[m, i], torch.tensor(kept[int(labels[i])]))
                for m in range(3)
                if present[i, m]
            ]
        ).mean()
        for i in (0, 1, 2)
    ]
    value = prototype_contrast(v, present, labels, complete, known, 0.2)
    torch.testing.assert_close(value, torch.stack(rows).mean())


@pytest.mark.parametrize(("distance", "expected"), [("l2", 2.0), ("l1", 2.0), ("smooth_l1", 1.0)])
def test_alignment_of_two_unit_vectors(distance, expected):
    v = torch.eye(2).unsqueeze(1)
    there = torch.ones(1, 2, dtype=torch.bool)
    assert modality_alignment(v, there, torch.tensor([True]), distance) == expected


def test_alignment_sums_over_the_pairs_of_a_row():
    v = torch.randn(3, 3, 4)
    units = F.normalize(v, dim=2)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])

    def total(pairs):
        return sum((units[a, row] - units[b, row]).square().sum() for row, a, b in pairs)

    pairs = [(0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 0, 2)]
    value = modality_alignment(v, present, torch.tensor([True, True, True]), "l2")
    torch.testing.assert_close(value, total(pairs) / 3)
    value = modality_alignment(v, present, torch.tensor([True, False, False]), "l2")
    torch.testing.assert_close(value, total(pairs[:3]))


# What a client sends and the server makes of it.


def test_local_prototypes_are_means_over_the_training_rows(second_round):
    run = second_round()
    client = run.federation.clients[3]
    params = run.train([client])[0]
    sent = run.algorithm.upload(params, client)
    batch = gather(client.task, client.train_rows)
    u = run.algorithm.project(params, batch.inputs)
    means, counts = ops.class_prototypes(u, batch.labels, 3)
    torch.testing.assert_close(sent["prototype.local"], means)
    assert torch.equal(sent["prototype.count"], counts)
    assert counts.sum() == client.num_train


def test_a_class_of_fewer_rows_than_the_minimum_stays_at_home(toy_federation):
    client = toy_federation.clients[5]
    labels = client.task.labels[client.train_rows]
    counts = torch.bincount(labels, minlength=3)
    assert counts.min() < counts.max()
    means, sent = local_prototypes(lambda x: x.values["right"], client, int(counts.max()))
    kept = counts == counts.max()
    assert torch.equal(sent, torch.where(kept, counts, 0))
    assert torch.equal(means[~kept], torch.zeros_like(means[~kept]))
    assert means[kept].abs().min() > 0


def test_rows_without_any_modality_are_in_no_prototype(toy_federation):
    emptied = data.with_missing(toy_federation, rate=0.5, level="sample", rule="independent", seed=0)
    client = emptied.clients[0]
    batch = gather(client.task, client.train_rows)
    there = batch.inputs.present.any(dim=1)
    assert 0 < there.sum() < client.num_train
    means, counts = local_prototypes(lambda x: x.values["right"] + 1, client, 1)
    expected, sizes = ops.class_prototypes(batch.inputs.values["right"][there] + 1, batch.labels[there], 3)
    assert torch.equal(counts, sizes)
    torch.testing.assert_close(means, expected)


@pytest.mark.parametrize(("by_count", "weights"), [(False, [0.5, 0.5]), (True, [0.25, 0.75])])
def test_complete_prototypes_are_means_over_who_has_the_class(by_count, weights):
    prototypes = torch.randn(3, 2, 4)
    counts = torch.tensor([[2, 0], [0, 0], [6, 5]])
    mean = mean_prototypes(prototypes, counts, by_count=by_count)
    torch.testing.assert_close(mean[0], weights[0] * prototypes[0, 0] + weights[1] * prototypes[2, 0])
    torch.testing.assert_close(mean[1], prototypes[2, 1])
    nobody = mean_prototypes(prototypes, torch.zeros(3, 2, dtype=torch.int64), by_count=by_count)
    assert torch.equal(nobody, torch.zeros(2, 4))


def test_clients_of_all_kinds_are_in_the_complete_prototypes(second_round):
    run = second_round()
    assert len({c.modalities for c in run.federation.clients}) > 1
    params = run.train()
    sent = [run.algorithm.upload(p, c) for p, c in zip(params, run.federation.clients, strict=True)]
    new = run.aggregate(params).prototypes[0]
    for k in range(3):
        have = [s["prototype.local"][k] for s in sent if s["prototype.count"][k] > 0]
        torch.testing.assert_close(new["prototype.complete"][k], torch.stack(have).mean(0))


def test_complete_prototypes_do_not_depend_on_the_order_of_clients(second_round):
    run = second_round()
    clients, params = list(run.federation.clients), run.train()
    order = [3, 0, 5, 1, 4, 2]
    ahead = run.aggregate(params).prototypes[0]
    shuffled = run.aggregate([params[i] for i in order], [clients[i] for i in order]).prototypes[0]
    torch.testing.assert_close(
        ahead["prototype.complete"], shuffled["prototype.complete"], rtol=1e-6, atol=1e-7
    )


def by_class(sizes):
    """One client per entry: how many rows of each of three classes it holds."""
    owner = np.repeat(np.arange(len(sizes)), [sum(s) for s in sizes])
    labels = np.concatenate([np.repeat(np.arange(3), s) for s in sizes])
    generator = np.random.default_rng(0)
    values = {m: generator.normal(size=(len(labels), 4)) + labels[:, None] for m in ("a", "b")}
    split = np.full(len(labels), "train")
    return data.from_arrays(values, labels, owner, split=split, num_classes=4)


def test_a_class_that_nobody_drawn_has_keeps_its_last_prototype(trial):
    run = trial("mfcpl", federation=by_class([(4, 4, 0), (4, 0, 4)]))
    clients = run.federation.clients
    first = run.aggregate(run.train(clients), clients)
    run = type(run)(run.algorithm, first, run.federation)
    second = run.aggregate(run.train(clients[:1], number=1), clients[:1])
    before, after = (s.prototypes[0]["prototype.complete"] for s in (first, second))
    assert not torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert torch.equal(before[2], after[2])
    assert second.prototypes[0]["prototype.known"].tolist() == [True, True, True, False]
    assert run.algorithm.metrics(second)["prototype_share"] == 0.75


def test_the_gap_is_the_mean_distance_of_what_was_sent(second_round):
    run = second_round()
    params = run.train()
    new = run.aggregate(params)
    complete = new.prototypes[0]["prototype.complete"]
    gaps = []
    for p, client in zip(params, run.federation.clients, strict=True):
        sent = run.algorithm.upload(p, client)
        gaps += [
            float((sent["prototype.local"][k] - complete[k]).norm())
            for k in range(3)
            if sent["prototype.count"][k] > 0
        ]
    assert run.algorithm.metrics(new)["prototype_gap"] == pytest.approx(np.mean(gaps), rel=1e-5)


def test_prototypes_travel_and_their_bytes_count(toy_federation, small):
    plain, ours = (
        mf.run(toy_federation, m, rounds=1, config=small(m)).history[0] for m in ("fusion-fedavg", "mfcpl")
    )
    width, classes, clients = 128, 3, len(toy_federation.clients)
    heads = (24 * width + width) + (12 * width + width) + 2 * (width * width + width)
    model = plain["bytes_up"] + 4 * heads * clients
    assert ours["bytes_up"] == model + (4 * classes * width + 8 * classes) * clients
    assert ours["bytes_down"] == model + (4 * classes * width + classes) * clients


# What the terms move.


@pytest.mark.parametrize(
    ("term", "moved", "unmoved"),
    [
        ("cmpr", ("encoder", "fusion", "g1"), ("g2", "head")),
        ("cmpc", ("encoder", "g2"), ("fusion", "g1", "head")),
        ("cma", ("encoder", "g2"), ("fusion", "g1", "head")),
    ],
)
@pytest.mark.parametrize("batch_proto", [False, True])
def test_every_penalty_has_a_gradient_where_it_belongs(
    second_round, toy_federation, term, moved, unmoved, batch_proto
):
    run = second_round(toy_federation, batch_proto=batch_proto, **only(term))
    found = gradients(run, run.federation.clients[0])
    assert all(largest(found, part) > 0 for part in moved)
    assert all(largest(found, part) == 0 for part in unmoved)


@pytest.mark.parametrize("absent", ["mask", "zero-fill"])
@pytest.mark.parametrize("term", ["cmpc", "cma"])
def test_a_missing_modality_gives_its_encoder_no_gradient(second_round, term, absent):
    run = second_round(absent=absent, **only(term))
    held = set()
    for client in run.federation.clients:
        found = gradients(run, client)
        for modality in client.task.modalities:
            moves = largest(found, f"encoder.{modality}.") > 0
            expected = modality in client.modalities and (term == "cmpc" or len(client.modalities) > 1)
            assert moves == expected
        held.add(client.modalities)
    assert held == {("left",), ("right",)}


@pytest.mark.parametrize("batch_proto", [False, True])
def test_rows_without_any_modality_move_nothing_but_cross_entropy(second_round, toy_federation, batch_proto):
    run = second_round(toy_federation, batch_proto=batch_proto, **dict.fromkeys(WEIGHTS, 1.0))
    start = run.starts()[0]
    batch = gather(run.federation.clients[0].task, run.federation.clients[0].train_rows)
    plain = type(run.algorithm)(run.algorithm.config.model_copy(update=NONE))

    def terms(present):
        emptied = batch._replace(inputs=Inputs(batch.inputs.values, present))
        context = Context(start, 1)
        return run.algorithm.loss(start, emptied, context) - plain.loss(start, emptied, context)

    some = torch.ones_like(batch.inputs.present)
    some[::2] = False
    kept = Batch(Inputs({m: x[1::2] for m, x in batch.inputs.values.items()}, some[1::2]), batch.labels[1::2])
    expected = run.algorithm.loss(start, kept, Context(start, 1)) - plain.loss(start, kept, Context(start, 1))
    torch.testing.assert_close(terms(some), expected)
    assert terms(torch.zeros_like(some)) == 0


@pytest.mark.parametrize("alignment", ["l2", "l1", "smooth_l1"])
def test_alignment_is_exactly_zero_for_uni_modal_clients(second_round, alignment):
    run = second_round(alignment=alignment, **only("cma"))
    for client in run.federation.clients:
        assert len(client.modalities) == 1
        start = run.algorithm.broadcast(run.state, client)
        batch = gather(client.task, client.train_rows)
        v = nn.two_layer(start, "g2", torch.randn(2, client.num_train, 12))
        there = torch.ones(client.num_train, dtype=torch.bool)
        assert modality_alignment(v, batch.inputs.present, there, alignment) == 0
        assert all(g.abs().max() == 0 for g in gradients(run, client).values())


@pytest.mark.parametrize("alignment", ["l2", "l1", "smooth_l1"])
def test_alignment_brings_modalities_together(second_round, toy_federation, alignment):
    run = second_round(toy_federation, alignment=alignment, momentum=0.0, learning_rate=0.005, **only("cma"))
    client = run.federation.clients[3]
    batch = gather(client.task, client.train_rows)

    def apart(params):
        means = [s.mean(dim=1) for s in run.algorithm.encode(params, batch.inputs).values()]
        v = nn.two_layer(params, "g2", torch.stack(means))
        return modality_alignment(v, batch.inputs.present, batch.labels != -100, alignment)

    assert apart(run.train([client])[0]) < apart(run.starts()[3])


def test_the_first_round_is_cross_entropy_and_alignment(trial, toy_federation):
    run = trial("mfcpl", federation=toy_federation)
    same = trial("mfcpl", federation=toy_federation, cmpr=0.0, cmpc=0.0)
    other = trial("mfcpl", federation=toy_federation, cma=0.0)
    for mine, theirs in zip(run.train(), same.train(), strict=True):
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert not torch.equal(run.train()[0]["g2.0.weight"], other.train()[0]["g2.0.weight"])


# What comes of it in a run.


@pytest.mark.parametrize("options", [{}, {"absent": "zero-fill", "participation": 0.6}, {"chunk": 3}])
@pytest.mark.parametrize("level", ["client", "sample"])
def test_without_its_terms_it_is_fedavg_bit_for_bit(toy_federation, small, options, level):
    federation = data.with_missing(toy_federation, rate=0.8, level=level, seed=1)
    plain, ours = (
        mf.run(federation, m, rounds=4, config=small(m, largest_norm=1.0, **options, **more))
        for m, more in (("fusion-fedavg", {}), ("mfcpl", NONE))
    )
    assert [line["train_loss"] for line in plain.history] == [line["train_loss"] for line in ours.history]
    for name, tensor in plain.state.models[0].items():
        assert torch.equal(tensor, ours.state.models[0][name]), name
    assert torch.equal(plain.final["per_client"], ours.final["per_client"])


@pytest.mark.parametrize("term", WEIGHTS)
def test_each_term_changes_the_run(toy_federation, small, term):
    base, changed = (
        mf.run(toy_federation, "mfcpl", rounds=2, config=small("mfcpl", **options)).state.models[0]
        for options in (NONE, only(term))
    )
    assert not torch.equal(base["encoder.left.gru.input.weight"], changed["encoder.left.gru.input.weight"])


@pytest.mark.parametrize("batch_proto", [False, True])
@pytest.mark.parametrize("level", ["client", "sample"])
def test_chunks_change_nothing_but_rounding(toy_federation, small, level, batch_proto):
    federation = data.with_missing(toy_federation, rate=0.8, level=level, rule="independent", seed=1)
    alone, stacked = (
        state_tensors(
            mf.run(
                federation,
                "mfcpl",
                rounds=3,
                config=small(
                    "mfcpl", chunk=chunk, batch_proto=batch_proto, min_count=1, **dict.fromkeys(WEIGHTS, 1.0)
                ),
            ).state
        )
        for chunk in (1, 4)
    )
    for name in (n for n in alone if alone[n].is_floating_point()):
        torch.testing.assert_close(alone[name], stacked[name], rtol=1e-4, atol=1e-4, msg=name)


def test_number_of_threads_changes_no_bit(toy_federation, small, set_threads):
    states = []
    for threads in (1, 2):
        set_threads(threads)
        states.append(state_tensors(mf.run(toy_federation, "mfcpl", rounds=2, config=small("mfcpl")).state))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_any_number_of_modalities(small, number):
    generator = np.random.default_rng(0)
    shapes = [(9, 3), (5,), (1, 6, 6), (12, 2), (7,), (4, 4)][:number]
    values = {f"m{i}": generator.normal(size=(60, *shape)) for i, shape in enumerate(shapes)}
    full = data.from_arrays(values, np.arange(60) % 3, np.arange(60) // 12)
    federation = data.with_missing(full, rate=0.8, seed=0)
    result = mf.run(federation, "mfcpl", rounds=3, config=small("mfcpl"))
    assert torch.isfinite(result.final["per_client"]).all()
    assert result.history[-1]["prototype_share"] == 1.0


def test_clients_of_one_modality_only(toy_federation, small):
    federation = thinned(toy_federation)
    assert all(len(c.modalities) == 1 for c in federation.clients)
    result = mf.run(federation, "mfcpl", rounds=3, config=small("mfcpl", **dict.fromkeys(WEIGHTS, 1.0)))
    assert torch.isfinite(result.final["per_client"]).all()


def test_a_class_that_no_client_holds_and_a_client_of_one_row(small):
    federation = by_class([(5, 3, 0), (2, 0, 6), (0, 0, 1)])
    assert federation.clients[2].num_train == 1
    with pytest.warns(UserWarning, match="no test row"):
        result = mf.run(federation, "mfcpl", rounds=3, config=small("mfcpl"))
    row = result.state.prototypes[0]
    assert row["prototype.known"].tolist() == [True, True, True, False]
    assert torch.equal(row["prototype.complete"][3], torch.zeros(128))
    assert all(t.isfinite().all() for t in result.state.models[0].values())


def test_nobody_has_enough_rows_for_a_prototype(small):
    federation = by_class([(1, 1, 0), (0, 1, 1)])
    with pytest.warns(UserWarning, match="no test row"):
        result = mf.run(federation, "mfcpl", rounds=2, config=small("mfcpl"))
    assert result.history[-1]["prototype_share"] == 0.0
    assert math.isnan(result.history[-1]["prototype_gap"])
    assert all(t.isfinite().all() for t in result.state.models[0].values())


def four_sensors(seed):
    """Twelve people with habits of their own, five activities, four sensors that each tell them apart."""
    generator = np.random.default_rng(seed)
    labels, people = generator.integers(5, size=480), np.repeat(np.arange(12), 40)
    values = {}
    for sensor in ("wrist", "ankle", "chest", "head"):
        centres, habits = generator.normal(0, 0.7, (5, 12)), generator.normal(0, 0.5, (12, 12))
        values[sensor] = centres[labels] + habits[people] + generator.normal(0, 1.2, (480, 12))
    return data.from_arrays(values, labels, people, seed=seed)


def test_at_a_missing_rate_of_80_percent_it_beats_fedavg_with_zero_filling(small):
    def mean_f1(method, **options):
        config = small(method, width=16, attention_width=32, head_width=16, participation=0.5, **options)
        scores = []
        for seed in range(3):
            federation = data.with_missing(four_sensors(seed), rate=0.8, seed=seed)
            run = mf.run(federation, method, rounds=20, seed=seed, config={**config, "evaluate_every": 20})
            scores.append(run.final["macro_f1"])
        return np.mean(scores)

    assert mean_f1("mfcpl") > mean_f1("fusion-fedavg", absent="zero-fill")
