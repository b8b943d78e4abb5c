import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

import mmfl_fast as mf
from mmfl_fast import data
from mmfl_fast.algorithms.smil import SMIL, Noise, modality_priors, normal_divergence
from mmfl_fast.experiments.fairness import refuse_unequal_plans
from mmfl_fast.experiments.plan import Method
from mmfl_fast.experiments.presets import load_experiment
from mmfl_fast.federation import Context, Inputs, Uploads, part_of
from mmfl_fast.federation.batching import gather, gather_stacked
from mmfl_fast.federation.checkpoints import state_tensors
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.streams import Purpose, torch_generator

SMALL = {"head_width": 6, "priors": 4, "samples": 2, "local_epochs": 2, "learning_rate": 0.02}


@pytest.fixture(autouse=True)
def _one_thread(set_threads):
    set_threads(1)


def build(federation, **options):
    algorithm = SMIL(SMIL.Config(**{**SMALL, **options}))
    return algorithm, algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))


def train(algorithm, state, clients, number=0):
    phases = algorithm.client_phases()
    starts = [algorithm.broadcast(state, c) for c in clients]
    return [
        train_clients([c], [s], phases, number, 0)[0].params for c, s in zip(clients, starts, strict=True)
    ]


def aggregate(algorithm, state, clients, params):
    rows = [algorithm.upload(p, c) for p, c in zip(params, clients, strict=True)]
    sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    return algorithm.aggregate(state, Uploads(clients, rows), sizes / sizes.sum())


def second_round(federation, **options):
    """An algorithm and its state when the first priors have come."""
    algorithm, state = build(federation, **options)
    clients = federation.clients
    return algorithm, aggregate(algorithm, state, clients, train(algorithm, state, clients))


def two_vectors(**changes):
    """Parameters for the modalities a, of two features, and b, of one; K = 2, two hidden units."""
    params = {
        "head.0.weight": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]),
        "head.0.bias": torch.zeros(2),
        "reconstruct.weight": torch.zeros(4, 3),
        "reconstruct.bias": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "regularise.weight": torch.zeros(4, 3),
        "regularise.bias": torch.tensor([0.5, -0.5, 1.0, 2.0]),
        "prior.a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "prior.b": torch.tensor([[10.0], [20.0]]),
        "prior.known": torch.ones(2, 2, dtype=torch.bool),
    }
    return {**params, **changes}


FEATURES = {"a": torch.tensor([[5.0, 6.0], [5.0, 6.0]]), "b": torch.tensor([[7.0], [7.0]])}
PRESENT = torch.tensor([[True, True], [True, False]])
NOISE = Noise(torch.full((2, 2, 2), 0.1), torch.tensor([[0.3, 0.0], [0.3, 0.0]]))


def softplus(x):
    return math.log1p(math.exp(x))


def test_an_absent_feature_is_rebuilt_from_the_priors():
    """w_k = 1 + sigma_k eps with sigma = softplus(phi_c(x)); the feature is sum_k w_k p_k / K."""
    algorithm = SMIL(SMIL.Config(priors=2, head_width=2))
    h0 = algorithm.rebuilt(two_vectors(), FEATURES, PRESENT, NOISE)
    b = ((1 + 0.1 * softplus(3)) * 10 + (1 + 0.1 * softplus(4)) * 20) / 2
    torch.testing.assert_close(h0, torch.tensor([[5.0, 6.0, 7.0], [5.0, 6.0, b]]))


def test_softplus_weights_are_divided_by_their_sum_and_not_drawn():
    algorithm = SMIL(SMIL.Config(priors=2, head_width=2, weights="softplus"))
    h0 = algorithm.rebuilt(two_vectors(), FEATURES, PRESENT, NOISE)
    b = (softplus(3) * 10 + softplus(4) * 20) / (softplus(3) + softplus(4))
    torch.testing.assert_close(h0[1], torch.tensor([5.0, 6.0, b]))


@pytest.mark.parametrize("weights", ["normal", "softplus"])
def test_priors_that_are_not_known_have_no_say(weights):
    algorithm = SMIL(SMIL.Config(priors=2, head_width=2, weights=weights))
    one = two_vectors(**{"prior.known": torch.tensor([[True, True], [True, False]])})
    factor = 1 + 0.1 * softplus(3) if weights == "normal" else 1.0
    assert float(algorithm.rebuilt(one, FEATURES, PRESENT, NOISE)[1, 2]) == pytest.approx(10 * factor)
    none = two_vectors(**{"prior.known": torch.zeros(2, 2, dtype=torch.bool)})
    assert algorithm.rebuilt(none, FEATURES, PRESENT, NOISE)[1].tolist() == [5, 6, 0]


def test_what_is_absent_does_not_reach_the_weights():
    """phi_c sees zeros in place of the absent feature, whatever stands in its row."""
    algorithm = SMIL(SMIL.Config(priors=2, head_width=2))
    params = two_vectors(**{"reconstruct.weight": torch.ones(4, 3)})
    other = {**FEATURES, "b": torch.tensor([[7.0], [-9.0]])}
    a, b = (algorithm.rebuilt(params, f, PRESENT, NOISE) for f in (FEATURES, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("operation", ["multiply", "add"])
@pytest.mark.parametrize("variance", ["learnt", "unit"])
def test_the_hidden_layer_is_regularised(operation, variance):
    """h^1 o softplus(r), r = mu + sigma eps with (mu, sigma) = phi_r(h^0)."""
    algorithm = SMIL(SMIL.Config(priors=2, head_width=2, operation=operation, variance=variance))
    hidden = algorithm.hidden(two_vectors(), torch.tensor([[5.0, 9.0, 7.0]]), Noise(NOISE.w, NOISE.r[:1]))
    sigma = softplus(1.0) if variance == "learnt" else 1.0
    factors = softplus(0.5 + 0.3 * sigma), softplus(-0.5)
    plain = 12.0, 2.0
    told = [h * f if operation == "multiply" else h + f for h, f in zip(plain, factors, strict=True)]
    torch.testing.assert_close(hidden, torch.tensor([told]))


def test_divergence_of_normals():
    values = normal_divergence(torch.tensor([0.0, 1.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, math.e, 0.5]))
    expected = [0.0, 0.5, (math.e**2 - 3) / 2, (0.25 + 4 - 1 + 2 * math.log(2)) / 2]
    torch.testing.assert_close(values, torch.tensor(expected))
    drawn = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(0.0, 1.0)
    by_torch = torch.distributions.kl_divergence(*drawn)
    torch.testing.assert_close(normal_divergence(torch.tensor(0.3), torch.tensor(0.7)), by_torch)
    assert normal_divergence(torch.tensor(0.0), torch.tensor(0.0)).isfinite()


def test_priors_are_centres_of_the_class_means():
    means = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0], [10.0, 1.0]])
    centres, known = modality_priors(means, 2)
    assert sorted(centres.tolist()) == [[0, 1], [10, 1]]
    assert known.tolist() == [True, True]
    for order in itertools.islice(itertools.permutations(range(5)), 1, 120, 17):
        assert torch.equal(modality_priors(means[list(order)], 2)[0], centres)
    few, known = modality_priors(means[[0, 2, 0]], 4)
    assert few.tolist() == [[0, 0], [10, 0], [0, 0], [0, 0]]
    assert known.tolist() == [True, True, False, False]


def test_priors_come_from_complete_rows_alone(digits):
    """A client sends the class means of its complete rows, and the server's centres are among them."""
    present = digits.tasks[0].present.clone()
    owner = digits.tasks[0].owner
    present[owner == 1, 0] = False
    present[owner == 2, :2] = torch.tensor([False, True])
    incomplete = data.Federation("digits", (replaced(digits.tasks[0], present),))
    algorithm, state = build(incomplete, min_count=3)
    clients = incomplete.clients
    params = [algorithm.broadcast(state, c) for c in clients]
    sent = [algorithm.upload(p, c) for p, c in zip(params, clients, strict=True)]
    for upload in sent[1:]:
        assert upload["class.count"].tolist() == [0, 0, 0]
    batch = gather(clients[0].task, clients[0].train_rows)
    features = torch.cat(list(algorithm.features(params[0], batch.inputs, set()).values()), dim=1)
    for c in range(3):
        torch.testing.assert_close(sent[0]["class.means"][c], features[batch.labels == c].mean(dim=0))
    new = aggregate(algorithm, state, clients, params)
    known = new.priors[0]["prior.known"]
    assert known.tolist() == [[True, True, True, False]] * 3
    assert algorithm.metrics(new) == {"prior_share": 0.75}
    tables = torch.cat([new.priors[0][f"prior.{m}"][:3] for m in ("image", "sign", "sound")], dim=1)
    sizes = [new.priors[0][f"prior.{m}"].shape[1] for m in ("image", "sign", "sound")]
    for own, theirs in zip(
        tables.split(sizes, dim=1), sent[0]["class.means"].split(sizes, dim=1), strict=True
    ):
        torch.testing.assert_close(own.sort(dim=0).values, theirs.sort(dim=0).values)
    # A round in which no complete client takes part keeps the priors.
    kept = aggregate(algorithm, new, clients[1:], params[1:])
    assert torch.equal(kept.priors[0]["prior.image"], new.priors[0]["prior.image"])


def replaced(task, present):
    """A task whose rows lack modalities."""
    column = {m: present[:, i] for i, m in enumerate(task.inputs)}
    inputs = {m: x * column[m].reshape(-1, *[1] * (x.dim() - 1)) for m, x in task.inputs.items()}
    return replace(task, present=present, inputs=inputs)


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("outer", ["complete", "both"])
@pytest.mark.parametrize("penalty", ["kl", "matching"])
def test_the_gradient_is_that_of_the_bilevel_step(digits, order, outer, penalty):
    options = {"support": ("image", "sound"), "inner_rate": 0.05, "penalty_weight": 0.5}
    algorithm, state = second_round(digits, order=order, outer=outer, penalty=penalty, **options)
    client = digits.clients[0]
    start = algorithm.broadcast(state, client)
    params = {n: t.double() if t.is_floating_point() else t for n, t in start.items()}
    batch = gather(client.task, client.train_rows)
    values = {n: x.double() for n, x in batch.inputs.values.items()}
    context = Context(params, 3)
    rows = torch.arange(client.num_train)
    hidden_at = rows % 5 == 0
    present = torch.ones(client.num_train, 3, dtype=torch.bool)
    present[hidden_at, 1] = False
    noise = algorithm.noise(values, 3, 0)
    known = params["prior.known"]

    def h0(theta, chosen, mask):
        features = algorithm.features(theta, Inputs({n: x[chosen] for n, x in values.items()}, mask), set())
        return algorithm.rebuilt(theta, features, mask, Noise(noise.w[chosen], noise.r[chosen]))

    def h1(theta, chosen, mask):
        return algorithm.hidden(theta, h0(theta, chosen, mask), Noise(noise.w[chosen], noise.r[chosen]))

    def fit(theta, chosen):
        logits = mf.nn.linear(theta, "head.1", h1(theta, chosen, present[chosen]))
        return F.cross_entropy(logits, batch.labels[chosen])

    def by_hand(moving):
        theta = {**params, **moving}
        inner = {n: t for n, t in moving.items() if part_of(n) in ("branch", "head")}
        slope = torch.func.grad(lambda p: fit({**theta, **p}, rows[hidden_at]))(
            inner if order == "second" else {n: t.detach() for n, t in inner.items()}
        )
        theta = {**theta, **{n: t - 0.05 * slope[n] for n, t in inner.items()}}
        seen = rows if outer == "both" else rows[~hidden_at]
        total = fit(theta, seen)
        if penalty == "matching":
            complete = rows[~hidden_at]
            lacking = present[complete] & torch.tensor([True, False, True])
            truth = h1(theta, complete, present[complete]).detach()
            return total + 0.5 * (h1(theta, complete, lacking) - truth).square().mean()
        before = h0(theta, seen, present[seen])
        mu, sigma = mf.nn.linear(theta, "regularise", before).chunk(2, dim=1)
        total = total + 0.5 * normal_divergence(mu, F.softplus(sigma)).mean()
        features = algorithm.features(
            theta, Inputs({n: x[hidden_at] for n, x in values.items()}, present[hidden_at]), set()
        )
        x = torch.cat([f * (m != "sign") for m, f in features.items()], dim=1)
        spread = F.softplus(mf.nn.linear(theta, "reconstruct", x)).reshape(len(x), 3, 4)[:, 1, known[1]]
        return total + 0.5 * normal_divergence(torch.zeros_like(spread), spread).mean()

    moving = {n: t for n, t in params.items() if part_of(n) != "prior"}
    leaves = {n: t.clone().requires_grad_() for n, t in moving.items()}
    doubled = batch._replace(inputs=batch.inputs._replace(values=values))
    loss = algorithm.loss({**params, **leaves}, doubled, context)
    torch.testing.assert_close(loss, by_hand(moving))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    for (name, wanted), gradient in zip(torch.func.grad(by_hand)(moving).items(), found, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-7, msg=name)


def test_without_inner_steps_the_start_does_not_adapt(digits):
    options = {"support": ("image",), "penalty_weight": 0.0}
    plain, state = second_round(digits, inner_steps=0, **options)
    adapting, _ = second_round(digits, inner_rate=0.5, **options)
    start = plain.broadcast(state, digits.clients[0])
    batch = gather(digits.tasks[0], digits.clients[0].train_rows)
    complete = torch.arange(len(batch.labels)) % 5 != 0
    noise = plain.noise(batch.inputs.values, 0, 0)
    features = plain.features(start, batch.inputs, set())
    h0 = plain.rebuilt(start, features, batch.inputs.present, noise)
    logits = mf.nn.linear(start, "head.1", plain.hidden(start, h0, noise))
    expected = F.cross_entropy(logits[complete], batch.labels[complete])
    torch.testing.assert_close(plain.loss(start, batch, Context(start, 0)), expected)
    assert (adapting.loss(start, batch, Context(start, 0)) - expected).abs() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"penalty": "matching"},
        {"weights": "softplus", "penalty": "matching", "outer": "both"},
        {"operation": "add"},
    ],
)
def test_every_shared_tensor_moves(digits, options):
    """In the second round: before the first priors have come phi_c has nothing to weigh."""
    algorithm, state = second_round(digits, support=("image", "sound"), weight_decay=0.0, **options)
    clients = digits.clients
    new = aggregate(algorithm, state, clients, train(algorithm, state, clients, 1))
    before, after = state.models[0], new.models[0]
    for name, tensor in before.items():
        assert not torch.equal(tensor, after[name]), name
    assert {part_of(n) for n in before} == {"branch", "head", "reconstruct", "regularise"}
    # The features of a vector are the vector.
    for name in ("prior.image", "prior.sign"):
        assert not torch.equal(state.priors[0][name], new.priors[0][name]), name


def test_the_order_of_clients_does_not_matter(digits):
    algorithm, state = second_round(digits, support=("image", "sound"), priors=2)
    clients = digits.clients
    params = train(algorithm, state, clients, 1)
    ahead = state_tensors(aggregate(algorithm, state, clients, params))
    order = [2, 0, 1]
    shuffled = aggregate(algorithm, state, [clients[i] for i in order], [params[i] for i in order])
    for name, tensor in state_tensors(shuffled).items():
        torch.testing.assert_close(tensor, ahead[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"penalty": "matching", "support": ("image",)}, {"outer": "both"}])
def test_a_stack_with_padding_has_the_losses_of_its_clients(digits, options):
    """Alone the rows are cut out, in a stack they are relabelled."""
    thinned = data.with_missing(digits, rate=0.4, level="sample", seed=0)
    algorithm, state = second_round(thinned, **options)
    clients = thinned.clients
    start = algorithm.broadcast(state, clients[0])
    alone = [algorithm.loss(start, gather(c.task, c.train_rows), Context(start, 1)) for c in clients]
    rows = pad_sequence([c.train_rows for c in clients], batch_first=True, padding_value=-1)
    stacked = torch.func.vmap(lambda b: algorithm.loss(start, b, Context(start, 1)))(
        gather_stacked(thinned.tasks[0], rows)
    )
    torch.testing.assert_close(stacked, torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_a_client_without_complete_rows_steps_on_its_incomplete_ones(digits):
    present = digits.tasks[0].present.clone()
    present[digits.tasks[0].owner == 1, 1] = False
    federation = data.Federation("digits", (replaced(digits.tasks[0], present),))
    algorithm, state = second_round(federation, penalty_weight=0.0, inner_steps=0)
    client = federation.clients[1]
    start = algorithm.broadcast(state, client)
    batch = gather(client.task, client.train_rows)
    noise = algorithm.noise(batch.inputs.values, 0, 0)
    h0 = algorithm.rebuilt(start, algorithm.features(start, batch.inputs, set()), batch.inputs.present, noise)
    logits = mf.nn.linear(start, "head.1", algorithm.hidden(start, h0, noise))
    expected = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(algorithm.loss(start, batch, Context(start, 0)), expected)
    (moved,) = train(algorithm, state, [client], 1)
    assert not torch.equal(moved["reconstruct.weight"], start["reconstruct.weight"])


def test_a_federation_without_complete_rows_has_no_priors_and_trains(digits):
    present = digits.tasks[0].present.clone()
    present[:, 1] = False
    federation = data.Federation("digits", (replaced(digits.tasks[0], present),))
    result = mf.run(federation, "smil", rounds=2, config=SMALL)
    assert [line["prior_share"] for line in result.history] == [0, 0]
    assert not result.state.priors[0]["prior.sign"].any()
    assert all(t.isfinite().all() for t in result.state.models[0].values())
    start = federation.clients[0]
    algorithm, state = second_round(federation)
    inputs = gather(start.task, start.train_rows).inputs
    params = algorithm.broadcast(state, start)
    features = algorithm.features(params, inputs, set())
    h0 = algorithm.rebuilt(params, features, inputs.present, algorithm.noise(features, 0, 0))
    first, second = features["image"].shape[1], features["sign"].shape[1]
    assert not h0[:, first : first + second].any()


def test_a_prediction_is_the_mean_over_draws(digits):
    algorithm, state = second_round(digits, samples=3)
    client = digits.clients[0]
    params = algorithm.broadcast(state, client)
    inputs = gather(client.task, client.test_rows).inputs
    inputs = inputs._replace(present=inputs.present & torch.tensor([True, False, True]))
    features = algorithm.features(params, inputs, set())
    drawn = []
    for draw in (1, 2, 3):
        noise = algorithm.noise(features, 0, draw)
        h0 = algorithm.rebuilt(params, features, inputs.present, noise)
        drawn.append(mf.nn.linear(params, "head.1", algorithm.hidden(params, h0, noise)).softmax(dim=1))
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(algorithm.predict(params, inputs).exp(), torch.stack(drawn).mean(dim=0))


def test_noise_is_standard_normal_and_differs_by_round_and_draw(digits):
    algorithm = SMIL(SMIL.Config(head_width=50))
    batch = {m: x[:30] for m, x in digits.tasks[0].inputs.items()}
    one, again, later, other = (algorithm.noise(batch, *of) for of in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert (one.w.shape, one.r.shape) == ((30, 3, 10), (30, 50))
    assert torch.equal(one.r, again.r)
    assert not torch.equal(one.r, later.r)
    assert not torch.equal(one.r, other.r)
    every = torch.cat([one.w.flatten(), one.r.flatten()])
    assert abs(float(every.mean())) < 0.08
    assert float(every.std()) == pytest.approx(1, abs=0.08)
    # A stack is as long as its longest client: the rows of a shorter one have the same noise.
    shorter = algorithm.noise({m: x[:10] for m, x in batch.items()}, 0, 0)
    assert torch.equal(shorter.w, one.w[:10])


@pytest.mark.parametrize("options", [{}, {"weights": "softplus", "variance": "unit", "penalty": "matching"}])
def test_it_learns(digits, options):
    config = {**SMALL, "support": "image+sound", "samples": 5, **options}
    result = mf.run(digits, "smil", rounds=10, config=config)
    assert result.final["accuracy"] > 0.8
    assert np.isfinite(result.final["macro_f1"])


def test_it_takes_the_effort_of_3fm_on_the_same_network(digits):
    experiment = load_experiment("smil-digits-cpu")
    methods = [Method.parse("3fm"), Method.parse("smil")]
    refuse_unequal_plans(experiment, methods, digits)
    theirs = load_experiment("3fm-digits-cpu")
    assert (experiment.data, experiment.rounds) == (theirs.data, theirs.rounds)


def test_a_scenario_of_unknown_modalities_is_refused(digits):
    with pytest.raises(ValueError, match="support names the unknown modality 'motion'"):
        build(digits, support=("motion",))
