import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmfl_fast as mf
from mmfl_fast import data, nn
from mmfl_fast.algorithms.three_fm import ThreeFM
from mmfl_fast.experiments.presets import load_experiment
from mmfl_fast.federation import Context, Uploads
from mmfl_fast.federation.batching import gather, shuffled_rows
from mmfl_fast.federation.checkpoints import state_tensors
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.streams import Purpose, stream, torch_generator

RATE = 0.05
SMALL = {"head_width": 6, "learning_rate": RATE, "inner_rate": RATE, "inner_steps": 2, "local_epochs": 2}


@pytest.fixture(autouse=True)
def _one_thread(set_threads):
    """As the engine trains; small products on several threads wait for each other."""
    set_threads(1)


def build(federation, **options):
    algorithm = ThreeFM(ThreeFM.Config(**{**SMALL, **options}))
    state = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))
    return algorithm, state, state.models[0]


def in_double(client, rows=None):
    batch = gather(client.task, client.train_rows if rows is None else rows)
    values = {n: x.double() for n, x in batch.inputs.values.items()}
    return batch._replace(inputs=batch.inputs._replace(values=values))


def scored(algorithm, params, batch, rows, modalities):
    """Cross-entropy on some rows with some modalities, by zeros and masks of full width."""
    names = list(batch.inputs.values)
    present = torch.tensor([[n in modalities for n in names]] * len(rows))
    values = {n: batch.inputs.values[n][rows] for n in names}
    inputs = batch.inputs._replace(values=values, present=present)
    return F.cross_entropy(algorithm.predict(params, inputs), batch.labels[rows])


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("query", ["all", "own"])
def test_the_gradient_is_that_of_the_query_loss_behind_the_inner_steps(digits, inner, query):
    algorithm, _, start = build(digits, inner=inner, query=query, support=("image", "sound"))
    client = digits.clients[0]
    params = {n: t.double() for n, t in start.items()}
    batch = in_double(client)
    order = torch.arange(len(batch.labels))
    seen = ("image", "sound") if query == "own" else ("image", "sign", "sound")

    def by_hand(theta):
        def support(p):
            return scored(algorithm, p, batch, order[::5], ("image", "sound"))

        if inner == "adam":
            adapted = nn.inner_adam(support, theta, RATE, 2, second_order=True)
        else:
            first = torch.func.grad(support)(theta)
            adapted = {n: t - RATE * first[n] for n, t in theta.items()}
            second = torch.func.grad(support)(adapted)
            adapted = {n: t - RATE * second[n] for n, t in adapted.items()}
        return scored(algorithm, adapted, batch, order[order % 5 != 0], seen)

    leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
    loss = algorithm.loss(leaves, batch, Context(params, 0))
    torch.testing.assert_close(loss, by_hand(params))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    expected = torch.func.grad(by_hand)(params)
    for (name, wanted), gradient in zip(expected.items(), gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-8, msg=name)


@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_the_meta_gradient_against_finite_differences(digits, inner):
    algorithm, _, start = build(digits, inner=inner)
    params = {n: t.double() for n, t in start.items()}
    batch = in_double(digits.clients[2])

    def loss(theta):
        return algorithm.loss(theta, batch, Context(params, 0))

    gradient = torch.func.grad(loss)(params)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = {n: torch.randn(t.shape, generator=generator).double() for n, t in params.items()}
        step = 1e-6
        ahead, behind = (
            loss({n: t + s * step * direction[n] for n, t in params.items()}) for s in (1.0, -1.0)
        )
        slope = sum((gradient[n] * direction[n]).sum() for n in params)
        torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=1e-4, atol=1e-6)


def test_first_order_is_per_fedavgs(digits):
    """FOMAML with one inner SGD step is ``g(w~)``, what Per-FedAvg's first-order form computes."""
    algorithm, _, start = build(digits, inner="sgd", inner_steps=1, order="first")
    batch = in_double(digits.clients[1])
    order = torch.arange(len(batch.labels))
    names = tuple(batch.inputs.values)
    leaves = {n: t.double().requires_grad_() for n, t in start.items()}
    theirs = nn.adapted_loss(
        lambda p: scored(algorithm, p, batch, order[::5], names),
        lambda p: scored(algorithm, p, batch, order[order % 5 != 0], names),
        leaves,
        RATE,
        hessian_free=False,
    )
    ours = algorithm.loss(leaves, batch, Context(start, 0))
    expected = torch.autograd.grad(theirs, list(leaves.values()))
    for a, b in zip(torch.autograd.grad(ours, list(leaves.values())), expected, strict=True):
        torch.testing.assert_close(a, b)
    second, _, _ = build(digits, inner="sgd", inner_steps=1)
    loss = second.loss(leaves, batch, Context(start, 0))
    curved = torch.autograd.grad(loss, list(leaves.values()))
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(curved, expected, strict=True))


@pytest.mark.parametrize("query", ["all", "own"])
@pytest.mark.parametrize("every", [5, None])
def test_without_inner_steps_it_is_fedavg_on_the_query_rows(digits, query, every):
    """The controls of papers.md 2.8: on the same complete query data, and on the missing data alone."""
    options = {"support": ("image", "sound"), "query": query, "inner_steps": 0, "support_every": every}
    algorithm, state, start = build(digits, **options, local_epochs=1)
    seen = ("image", "sound") if query == "own" else ("image", "sign", "sound")
    clients = digits.clients
    sent = [train_clients([c], [start], algorithm.client_phases(), 0, 0)[0].params for c in clients]
    for client, params in zip(clients, sent, strict=True):
        (rows,) = [shuffled_rows(client, stream(0, Purpose.BATCHES, 0, client.index))]
        batch = gather(client.task, rows)
        order = torch.arange(len(rows))
        queries = order if every is None else order[order % 5 != 0]
        plain = {n: t.clone().requires_grad_() for n, t in start.items()}
        adam = torch.optim.Adam(plain.values(), lr=RATE)
        scored(algorithm, plain, batch, queries, seen).backward()
        adam.step()
        for n, t in plain.items():
            torch.testing.assert_close(params[n], t.detach(), atol=1e-5, rtol=1e-4, msg=n)
    share = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    new = algorithm.aggregate(state, Uploads(clients, sent), share / share.sum())
    for n, t in new.models[0].items():
        mean = sum(w * p[n].double() for w, p in zip(share / share.sum(), sent, strict=True))
        torch.testing.assert_close(t.double(), mean, atol=1e-6, rtol=1e-5)


def test_the_centralised_baseline_is_adam_over_epochs_of_all_rows():
    """Papers.md 2.5: one net, Adam, small batches, the branches that are missing zeroed, tested with all."""
    experiment = load_experiment("3fm-centralised-cpu")
    assert (experiment.rounds, experiment.data["clients"]) == (1, 1)
    options = {k: v for k, v in experiment.options_of("3fm").items() if k in ThreeFM.Config.model_fields}
    config = ThreeFM.Config(**options)
    assert (config.learning_rate, config.batch_size, config.local_epochs) == (0.01, 16, 25)
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    values = {n: rng.normal(size=(40, 4)).astype(np.float32) + labels[:, None] for n in ("image", "sign")}
    federation = data.from_arrays({**values, "audio": -values["image"]}, labels, ["all"] * 40, name="one")
    algorithm = ThreeFM(config.model_copy(update={"head_width": 6, "local_epochs": 3}))
    start = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION)).models[0]
    (client,) = federation.clients
    trained = train_clients([client], [start], algorithm.client_phases(), 0, 0)[0]

    plain = {n: t.clone().requires_grad_() for n, t in start.items()}
    adam = torch.optim.Adam(plain.values(), lr=0.01)
    draw = stream(0, Purpose.BATCHES, 0, client.index)
    steps = 0
    for rows in [rows for _ in range(3) for rows in shuffled_rows(client, draw).split(16)]:
        adam.zero_grad()
        batch = gather(client.task, rows)
        scored(algorithm, plain, batch, torch.arange(len(rows)), ("image", "sign")).backward()
        adam.step()
        steps += 1
    assert (trained.steps, steps) == (6, 6)
    for n, t in plain.items():
        torch.testing.assert_close(trained.params[n], t.detach(), atol=1e-5, rtol=1e-4, msg=n)
    # Tests have all modalities: what was never trained has its say there.
    inputs = gather(client.task, client.test_rows).inputs
    absent = inputs._replace(present=inputs.present & torch.tensor([True, True, False]))
    assert not torch.equal(algorithm.predict(start, inputs), algorithm.predict(start, absent))


@pytest.mark.parametrize("query", ["all", "own"])
def test_a_modality_no_set_has_gets_no_gradient(digits, query):
    algorithm, _, start = build(digits, support=("sound",), query=query)
    leaves = {n: t.clone().requires_grad_() for n, t in start.items()}
    batch = gather(digits.tasks[0], digits.clients[0].train_rows)
    loss = algorithm.loss(leaves, batch, Context(start, 0))
    # As the engine asks: the branch of a modality that no row has does not run.
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    gradients = dict(zip(leaves, found, strict=True))
    reached = {n for n, g in gradients.items() if bool(g.abs().any())}
    assert any(n.startswith("branch.image") for n in reached) == (query == "all")
    assert any(n.startswith("head") for n in reached)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_server_steps_on_the_clients_gradients(digits, reduction):
    options = {"mode": "printed", "reduction": reduction, "local_epochs": 2, "batch_size": 15}
    algorithm, state, start = build(digits, **options, inner_steps=1)
    clients = digits.clients
    sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    sent = [train_clients([c], [start], algorithm.client_phases(), 0, 0)[0].params for c in clients]
    new = algorithm.aggregate(state, Uploads(clients, sent), sizes / sizes.sum())

    total = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in start.items()}
    for client in clients:
        draw = stream(0, Purpose.BATCHES, 0, client.index)
        batches = [rows for _ in range(2) for rows in shuffled_rows(client, draw).split(15)]
        for rows in batches:
            theta = {n: t.double() for n, t in start.items()}
            gradient = torch.func.grad(
                lambda p, rows=rows, theta=theta, client=client: algorithm.loss(
                    p, in_double(client, rows), Context(theta, 0)
                )
            )(theta)
            for n, g in gradient.items():
                total[n] += g / len(batches)
    factor = 1.0 if reduction == "sum" else 1 / len(clients)
    for n, t in start.items():
        moved = (new.models[0][n] - t).double()
        torch.testing.assert_close(moved, -RATE * factor * total[n], atol=2e-6, rtol=1e-3)


def test_the_modes_set_options_that_may_be_overridden():
    printed = ThreeFM.Config(mode="printed")
    assert (printed.inner, printed.inner_steps, printed.server, printed.local_epochs) == (
        "sgd",
        1,
        "gradient",
        1,
    )
    assert ThreeFM.Config(mode="printed", inner_steps=3).inner_steps == 3
    notebook = ThreeFM.Config()
    assert (notebook.inner, notebook.inner_steps, notebook.server, notebook.local_epochs) == (
        "adam",
        5,
        "average",
        5,
    )
    assert ThreeFM.Config(support="image+sign").support == ("image", "sign")
    with pytest.raises(ValueError, match="inner_steps must be 0 without support_every; got 5"):
        ThreeFM.Config(support_every=None)
    with pytest.raises(ValueError, match="momentum"):
        ThreeFM.Config(momentum=0.9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "printed"},
        {"order": "first"},
        {"inner_steps": 0},
        {"query": "own", "support": ("image",)},
    ],
)
def test_clients_trained_in_a_stack_come_out_the_same(digits, options):
    config = {**SMALL, **options}
    alone, stacked = (
        state_tensors(mf.run(digits, "3fm", rounds=2, config={**config, "chunk": chunk}).state)
        for chunk in (1, 3)
    )
    for name in alone:
        torch.testing.assert_close(alone[name], stacked[name], atol=2e-4, rtol=2e-3)


def test_every_tensor_is_exchanged_by_its_path(digits):
    """The released code merges branches by layer name, and leaves most of them at their random start."""
    algorithm, state, start = build(digits)
    clients = digits.clients
    sent = [
        algorithm.upload(train_clients([c], [start], algorithm.client_phases(), 0, 0)[0].params, c)
        for c in clients
    ]
    new = algorithm.aggregate(state, Uploads(clients, sent), torch.full((3,), 1 / 3, dtype=torch.float64))
    for name, before in start.items():
        assert not torch.equal(before, new.models[0][name]), name


def test_it_learns_and_works_with_missing_modalities(digits):
    result = mf.run(digits, "3fm", rounds=10, config={**SMALL, "inner_rate": 1e-3, "learning_rate": 0.02})
    assert result.final["accuracy"] > 0.8
    for level in ("client", "sample"):
        thinned = data.with_missing(digits, rate=0.8, level=level, seed=0)
        thinned = mf.run(thinned, "3fm", rounds=2, config=SMALL)
        assert all(t.isfinite().all() for t in thinned.state.models[0].values())


def test_a_client_with_one_row_moves_nothing(digits):
    algorithm, _, start = build(digits, inner_steps=1)
    batch = gather(digits.tasks[0], digits.clients[0].train_rows[:1])
    leaves = {n: t.clone().requires_grad_() for n, t in start.items()}
    loss = algorithm.loss(leaves, batch, Context(start, 0))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    assert not any(bool(g.abs().any()) for g in gradients)


def test_a_scenario_of_no_modality_is_refused(digits):
    with pytest.raises(ValueError, match=r"support: Tuple should have at least 1 item .* got \[\]"):
        mf.run(digits, "3fm", rounds=1, config={"support": []})


def test_a_scenario_of_unknown_modalities_is_refused(digits):
    with pytest.raises(ValueError, match="support names the unknown modality 'motion'"):
        build(digits, support=("motion",))
