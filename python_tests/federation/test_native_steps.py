# ruff: noqa: ARG002 - an algorithm takes what the engine gives
import dataclasses
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmfl_fast as mf
from mmfl_fast import data, nn
from mmfl_fast.algorithms.backbone import BackboneAlgorithm
from mmfl_fast.federation import Algorithm, AlgorithmConfig, ParameterTable, Phase, Sgd, State
from mmfl_fast.federation.client_memory import ClientMemory
from mmfl_fast.federation.local_training import train_clients
from mmfl_fast.federation.native_steps import NativeSteps
from mmfl_fast.federation.optimisers import Adam
from mmfl_fast.federation.streams import Purpose, torch_generator

SMALL = {"width": 12, "operator_rows": 8, "layers": 2, "batch_size": 8, "local_epochs": 2}
# M3Fed and its baselines, with the settings that change what a client computes: nobody may leave the native
# path.
COVERED = [
    *((n, {}) for n in mf.algorithms.names() if issubclass(mf.algorithms.get(n), BackboneAlgorithm)),
    ("m3fed", {"retraction": "qr"}),
    ("m3fed", {"projection": False}),
    ("m3fed", {"meta_gradient": "first-order"}),
    ("m3fed", {"meta_gradient": "hessian-free"}),
    ("fedavg", {"schedule": "joint"}),
    ("fedavg", {"momentum": 0.0, "weight_decay": 0.0}),
    ("meta-har", {"head": "fresh"}),
    ("per-fedavg", {"meta_gradient": "hessian-free"}),
    ("fedmeta", {"variant": "meta-sgd"}),
    ("fedmeta", {"order": "first"}),
    ("mcarn", {"margins": "equal", "calibration": 0.0}),
]


# The methods on the fusion model likewise: series, tokens, vectors. 0.05 clips nearly every gradient.
FUSION = [
    ("fusion-fedavg", {}),
    ("fusion-fedavg", {"momentum": 0.0, "weight_decay": 0.0}),
    ("fusion-fedavg", {"encoders": {"left": "tokens"}, "absent": "zero-fill"}),
    ("fusion-fedavg", {"largest_norm": 0.05}),
    ("fedprox", {"mu": 0.5}),
    ("moon", {}),
    ("fedproto", {}),
    ("fediot", {}),
    ("fusion-fedmsplit", {}),
    ("creamfl", {}),
    ("mfcpl", {}),
    ("mfcpl", {"alignment": "l1", "largest_norm": 0.05}),
]


@pytest.fixture(autouse=True)
def _one_thread(set_threads):
    set_threads(1)


def flat(params):
    return torch.cat([t.flatten() for t in params.values()]).double()


def distance(a, b):
    """Relative distance of two clients' parameters, in norm."""
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


def both(clients, starts, phases, number=0):
    """Results of torch alone and of native steps."""
    native = NativeSteps()
    native.prepare(clients, starts, phases, number)
    plain, ours = [], []
    for client, start in zip(clients, starts, strict=True):
        plain += train_clients([client], [start], phases, number, 0)
        ours += train_clients([client], [start], phases, number, 0, native, ClientMemory())
    return plain, ours


def losses_called(phases):
    """The phases with losses that note that they were called."""
    calls = []

    def noting(loss):
        def noted(params, batch, context):
            calls.append(loss)
            return loss(params, batch, context)

        return noted

    noted = {phase.loss: noting(phase.loss) for phase in phases}
    return [dataclasses.replace(p, loss=noted[p.loss]) for p in phases], calls


@pytest.mark.parametrize(("method", "options"), COVERED)
def test_every_algorithm_trains_natively_to_the_same_parameters(mixed_federation, method, options):
    kind = mf.algorithms.get(method)
    algorithm = kind(kind.Config(**{**SMALL, **options}))
    state = algorithm.setup(mixed_federation, torch_generator(0, Purpose.INITIALISATION))
    clients = [mixed_federation.clients[i] for i in (1, 3, 6)]
    starts = [algorithm.broadcast(state, c) for c in clients]
    compare_natively(algorithm.client_phases(), clients, starts)


@pytest.mark.parametrize(("method", "options"), FUSION)
@pytest.mark.parametrize("level", ["client", "sample"])
def test_the_fusion_model_trains_natively_to_the_same_parameters(
    toy_federation, small, method, options, level
):
    federation = data.with_missing(toy_federation, rate=0.5, level=level, seed=1)
    config = small(method, **{"local_epochs": 2, **options})
    # A round gives prototypes and previous models.
    state = mf.run(federation, method, rounds=1, config={**config, "native_steps": "off"}).state
    algorithm = mf.algorithms.get(method)(mf.algorithms.get(method).Config(**config))
    clients = federation.clients[:3]
    compare_natively(algorithm.client_phases(), clients, [algorithm.broadcast(state, c) for c in clients])


# The methods on frozen features: sequences of tokens, of unequal length, and vectors.
FROZEN = [
    ("client", "fedmvp", {}),
    ("sample", "fedmvp", {"mcm": 0.5, "renorm_joint": True, "ram": 5.0, "ram_distance": "batch"}),
    ("sample", "fedmvp", {"mcm": 0.0, "ram": 5.0, "incomplete": "drop", "weight_decay": 0.5}),
    ("client", "joint-fedavg", {"incomplete": "keep"}),
    ("sample", "joint-fedavg", {"only": "left"}),
    ("sample", "fedclip", {"scale": 5.0}),
]


@pytest.mark.parametrize(("level", "method", "options"), FROZEN)
def test_methods_on_frozen_features_train_natively(toy_federation, small, level, method, options):
    federation = data.with_missing(toy_federation, rate=0.5, level=level, seed=1)
    algorithm = mf.algorithms.get(method)(
        mf.algorithms.get(method).Config(**small(method, **{"local_epochs": 3, **options}))
    )
    state = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))
    clients = federation.clients[:2]
    compare_with_float64(algorithm.client_phases(), clients, [algorithm.broadcast(state, c) for c in clients])


@pytest.mark.parametrize(
    "options",
    [
        {"inner_steps": 2, "order": "first"},
        {"inner": "sgd", "query": "own"},
        {"mode": "printed", "support": ["series"]},
    ],
)
def test_3fm_trains_natively_to_the_same_parameters(small, options):
    algorithm, clients, starts = three_fm(small, **options)
    compare_natively(algorithm.client_phases(), clients, starts)


@pytest.mark.parametrize(
    "options",
    [
        {"inner_steps": 0, "server": "gradient"},
        {"inner_steps": 0, "server": "gradient", "support_every": None, "query": "own", "support": ["signs"]},
        {"mode": "printed"},
        {"mode": "printed", "order": "first", "query": "own"},
    ],
)
def test_3fm_on_pictures_trains_natively_to_the_same_parameters(small, options):
    algorithm, clients, starts = three_fm(small, PICTURES, **options)
    compare_natively(algorithm.client_phases(), clients, starts)


VECTORS = {"series": (30,), "vector": (5,)}
# Behind the second's convolution follows one of 2 x 2.
PICTURES = {"signs": (14, 15), "faces": (2, 16, 17)}


def three_fm(small, shapes=VECTORS, **options):
    return branches("3fm", small, shapes, **options)


def branches(method, small, shapes, missing=0.0, **options):
    """The algorithm, two clients that hold two modalities per row, and their starts."""
    generator = np.random.default_rng(0)
    inputs = {name: generator.normal(size=(40, *shape)) for name, shape in shapes.items()}
    labels, owners = np.arange(40) % 3, np.repeat([0, 1], 20)
    federation = data.from_arrays(inputs, labels, owners, split=np.full(40, "train"), name="p")
    federation = data.with_missing(federation, rate=missing, level="sample", seed=0)
    algorithm = mf.algorithms.get(method)(mf.algorithms.get(method).Config(**small(method, **options)))
    state = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))
    return algorithm, federation.clients, [algorithm.broadcast(state, c) for c in federation.clients]


def with_priors(starts):
    """The same as if class means had come."""
    generator = torch.Generator().manual_seed(0)
    for start in starts:
        start |= {n: torch.randn(t.shape, generator=generator) for n, t in start.items() if n[:6] == "prior."}
        start["prior.known"] = start["prior.known"] > 0
        start["prior.known"][:, -1] = False
    return starts


# The last batch has one row, which the support set takes: no complete row counts in it.
@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (VECTORS, {"batch_size": 19}),
        (VECTORS, {"batch_size": 19, "outer": "both", "inner_steps": 2, "order": "first"}),
        (VECTORS, {"penalty": "matching", "weights": "softplus", "operation": "add", "variance": "unit"}),
        (PICTURES, {"batch_size": 19, "local_epochs": 1}),
        (PICTURES, {"penalty": "matching", "penalty_weight": 1.0}),
    ],
)
def test_smil_trains_natively(small, shapes, options):
    changes = {"support": [next(iter(shapes))], "support_every": 3, "penalty_weight": 0.5, **options}
    algorithm, clients, starts = branches("smil", small, shapes, **changes)
    compare_with_float64(algorithm.client_phases(), clients, with_priors(starts))


def test_smil_on_incomplete_rows_takes_the_generic_path_for_them_alone(small, caplog):
    algorithm, clients, starts = branches("smil", small, VECTORS, 0.5, support=["series"], batch_size=8)
    task = clients[1].task
    whole = dataclasses.replace(task, present=task.present | (task.owner == clients[1].index)[:, None])
    clients = [dataclasses.replace(c, task=whole) for c in clients]
    with caplog.at_level(logging.DEBUG, "mmfl_fast.federation.native_steps"):
        for a, b in zip(*both(clients, starts, algorithm.client_phases()), strict=True):
            assert distance(a.params, b.params) <= 1e-6
    assert caplog.text.count("depends on the value of a tensor") == 2


def noisy(params, batch, context):
    x = batch.inputs.values["left"].flatten(1)
    values = {"left": x + context.noise(x, x.shape[1])}
    return loss(params, batch._replace(inputs=batch.inputs._replace(values=values)), context)


def test_noise_of_the_round_is_not_recorded_anew(toy_federation):
    begin = start(toy_federation.tasks[0])
    clients = toy_federation.clients[:2]
    passes, calls = losses_called(phases(first=noisy, batch_size=8))
    native = NativeSteps()
    native.prepare(clients, [begin] * 2, passes, 0)
    recorded = len(calls)
    for number in (0, 3):
        native.prepare(clients, [begin] * 2, passes, number)
        ours = [train_clients([c], [begin], passes, number, 0, native)[0] for c in clients]
        assert len(calls) == recorded
        for client, a in zip(clients, ours, strict=True):
            (b,) = train_clients([client], [begin], phases(first=noisy, batch_size=8), number, 0)
            assert distance(a.params, b.params) <= 1e-6


@pytest.mark.parametrize(
    ("shapes", "batch_size", "sizes"), [(VECTORS, 64, {32}), (PICTURES, 64, {20}), (PICTURES, 11, {11, 8})]
)
def test_pictures_are_filled_up_with_fewer_rows(small, shapes, batch_size, sizes):
    algorithm, clients, starts = three_fm(small, shapes, inner_steps=0, batch_size=batch_size)
    native = NativeSteps()
    client = dataclasses.replace(clients[0], train_rows=clients[0].train_rows[:19])
    native.prepare([client], starts[:1], algorithm.client_phases()[:1], 0)
    assert {capacity for _, capacity, _ in native._steps} == sizes


@pytest.mark.parametrize(("shapes", "steps"), [(VECTORS, 2), (PICTURES, 2), (PICTURES, 0)])
def test_derivatives_through_adam_end_as_near_to_float64_as_those_of_torch(small, shapes, steps):
    algorithm, clients, starts = three_fm(small, shapes, inner_steps=steps)
    compare_with_float64(algorithm.client_phases(), clients, starts)


def in_float64(client, begin, phases):
    inputs = {name: x.double() for name, x in client.task.inputs.items()}
    exact = dataclasses.replace(client, task=dataclasses.replace(client.task, inputs=inputs))
    double = {name: t.double() if t.is_floating_point() else t for name, t in begin.items()}
    return train_clients([exact], [double], phases, 0, 0)[0].params


def compare_natively(phases, clients, starts):
    """Every pass of every client runs natively and ends where torch ends."""
    ours, plain = all_native(phases, clients, starts)
    for a, b in zip(ours, plain, strict=True):
        assert distance(a.params, b.params) <= 1e-6
        torch.testing.assert_close(a.loss, b.loss, rtol=2e-6, atol=1e-6)


def compare_with_float64(phases, clients, starts):
    """Every pass of every client runs natively and ends as near to float64 as torch does.

    Adam divides every gradient by its own size: where that is small, any two orders of summation part.
    """
    ours, plain = all_native(phases, clients, starts)
    exact = [in_float64(client, begin, phases) for client, begin in zip(clients, starts, strict=True)]
    for a, b, e in zip(ours, plain, exact, strict=True):
        assert distance(a.params, e) <= 2 * distance(b.params, e) + 1e-7


def all_native(phases, clients, starts):
    """Results of native steps, which every pass takes, and of torch."""
    phases, calls = losses_called(phases)
    native = NativeSteps()
    native.prepare(clients, starts, phases, 2)
    recorded = len(calls)
    ours = [train_clients([c], [s], phases, 2, 0, native)[0] for c, s in zip(clients, starts, strict=True)]
    assert len(calls) == recorded, "a pass took the generic path"
    plain = [train_clients([c], [s], phases, 2, 0)[0] for c, s in zip(clients, starts, strict=True)]
    for a, b, start in zip(ours, plain, starts, strict=True):
        assert (a.steps, a.samples, bool(a.finite)) == (b.steps, b.samples, True)
        assert distance(a.params, start) > 1e-4
        torch.testing.assert_close(a.loss, b.loss, rtol=2e-5, atol=1e-5)
    return ours, plain


def test_a_step_is_recorded_for_what_its_clients_lack(toy_federation, small):
    federation = data.with_missing(toy_federation, rate=0.5, level="client", seed=1)
    algorithm = mf.algorithms.get("fusion-fedavg")(
        mf.algorithms.get("fusion-fedavg").Config(**small("fusion-fedavg"))
    )
    state = algorithm.setup(federation, torch_generator(0, Purpose.INITIALISATION))
    lacking = {
        tuple(federation.tasks[0].present[c.train_rows].any(dim=0).tolist()): c for c in federation.clients
    }
    assert len(lacking) > 1
    sizes = set()
    for client in lacking.values():
        alone = dataclasses.replace(client, train_rows=client.train_rows[:8])
        native = NativeSteps()
        native.prepare([alone], [algorithm.broadcast(state, client)], algorithm.client_phases(), 0)
        sizes |= {len(step.program.instructions) for step in native._steps.values()}
    assert len(sizes) == len(lacking)


class Curved(Algorithm):
    """Logits through a function without native form."""

    def setup(self, federation, generator):
        return State(nn.init_linear("w", 6, 3, generator), ParameterTable({}))

    def loss(self, params, batch, context):
        return nn.cross_entropy(self.predict(params, batch.inputs), batch.labels)

    def predict(self, params, inputs):
        return nn.linear(params, "w", inputs.values["left"].flatten(1)).erf()


def test_what_has_no_native_form_trains_as_without(toy_federation):
    states = [
        mf.run(
            toy_federation, Curved, rounds=1, config={"batch_size": 8, "native_steps": choice}
        ).state.shared
        for choice in ("auto", "off")
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("method", ["m3fed", "mcarn", "fedavg"])
def test_a_run_natively_and_without(toy_federation, method):
    federation = data.with_missing(toy_federation, rate=0.5, level="sample", seed=1)
    results = [
        mf.run(federation, method, rounds=3, config={**SMALL, "native_steps": choice}).history
        for choice in ("auto", "off")
    ]
    for ours, plain in zip(*results, strict=True):
        assert ours["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
        assert ours["optimiser_steps"] == plain["optimiser_steps"]


def loss(params, batch, context):
    x = batch.inputs.values["left"].flatten(1)
    hidden = F.relu(F.linear(x, params["f.weight"], params["f.bias"]))
    pull = (params["f.weight"] - context.start["f.weight"]).square().sum()
    return nn.cross_entropy(F.linear(hidden, params["g.weight"]), batch.labels) + 0.1 * pull


def start(task):
    generator = torch.Generator().manual_seed(0)
    width = task.inputs["left"][0].numel()
    return {
        "f.weight": torch.randn(37, width, generator=generator),
        "f.bias": torch.zeros(37),
        "g.weight": 0.3 * torch.randn(task.num_classes, 37, generator=generator),
    }


def phases(first=loss, second=loss, optimiser=Sgd(0.1, 0.9, 1e-3), batch_size=8, **changes):  # noqa: B008
    passes = (
        Phase("first", first, ("f",), optimiser, batch_size),
        Phase("second", second, ("g",), Sgd(0.05), batch_size),
    )
    return [dataclasses.replace(p, **changes) for p in passes] * 2


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_any_batch_size_and_number_of_rows(toy_federation, batch_size):
    clients = toy_federation.clients
    starts = [start(clients[0].task)] * len(clients)
    passes = phases(optimiser=Sgd(0.02), batch_size=batch_size)
    for a, b in zip(*both(clients, starts, passes), strict=True):
        assert distance(a.params, b.params) <= 1e-6
        torch.testing.assert_close(a.loss, b.loss)


@pytest.mark.parametrize(
    "optimiser", [Adam(0.01), Adam(0.01, weight_decay=0.1), Adam(0.01, 0.8, 0.99, 1e-6, cosine_period=7)]
)
def test_adam_goes_on_from_pass_to_pass(toy_federation, optimiser):
    clients = toy_federation.clients[:2]
    starts = [start(clients[0].task)] * 2
    for largest in (None, 0.01):
        passes = phases(optimiser=optimiser, batch_size=8, largest_norm=largest)
        compare_natively(passes, clients, starts)


def test_a_client_of_one_row(toy_federation):
    client = toy_federation.clients[0]
    alone = dataclasses.replace(client, train_rows=client.train_rows[:1])
    (a,), (b,) = both([alone], [start(client.task)], phases())
    assert a.steps == b.steps == 4
    assert distance(a.params, b.params) <= 1e-6


def test_momentum_lasts_from_pass_to_pass(toy_federation):
    client, begin = toy_federation.clients[0], start(toy_federation.tasks[0])
    shared = phases()[:1] * 3
    apart = [dataclasses.replace(p, name=str(i)) for i, p in enumerate(shared)]
    (plain,), (ours,) = both([client], [begin], shared)
    _, (restarted,) = both([client], [begin], apart)
    assert distance(ours.params, plain.params) <= 1e-6
    assert distance(restarted.params, plain.params) > 1e-3


def test_the_broadcast_is_not_written_to_nor_handed_out(toy_federation):
    client, begin = toy_federation.clients[0], start(toy_federation.tasks[0])
    copies = {name: tensor.clone() for name, tensor in begin.items()}
    _, (ours,) = both([client], [begin], phases()[:1])
    assert all(torch.equal(begin[name], copies[name]) for name in begin)
    assert torch.equal(ours.params["g.weight"], begin["g.weight"])
    assert ours.params["g.weight"].data_ptr() != begin["g.weight"].data_ptr()


def test_a_hook_that_leaves_the_usual_memory_layout(toy_federation):
    turned = phases(after=lambda params: {**params, "f.weight": params["f.weight"].mT.clone().mT * 0.5})
    client, begin = toy_federation.clients[0], start(toy_federation.tasks[0])
    (plain,), (ours,) = both([client], [begin], turned)
    assert distance(ours.params, plain.params) <= 1e-6


def test_a_diverging_client_is_told(toy_federation):
    client, begin = toy_federation.clients[0], start(toy_federation.tasks[0])
    for optimiser in (Sgd(1e30), Sgd(1e30, 0.9)):
        _, (ours,) = both([client], [begin], phases(optimiser=optimiser)[:1])
        assert not ours.finite
    config = {**SMALL, "learning_rate": 1e30}
    with pytest.raises(mf.federation.DivergedError, match="after round 1"):
        mf.run(toy_federation, "fedavg", rounds=2, config=config)


def test_the_round_number_is_looked_at_anew(toy_federation):
    def weighted(params, batch, context):
        return (1 + context.round) * loss(params, batch, context)

    client, begin = toy_federation.clients[0], start(toy_federation.tasks[0])
    passes, native = phases(first=weighted), NativeSteps()
    for number in (0, 3):
        native.prepare([client], [begin], passes, number)
        (ours,) = train_clients([client], [begin], passes, number, 0, native)
        (plain,) = train_clients([client], [begin], passes, number, 0)
        assert distance(ours.params, plain.params) <= 1e-6
    (unprepared,) = train_clients([client], [begin], passes[:1], 5, 0, native)
    (plain,) = train_clients([client], [begin], passes[:1], 5, 0)
    assert torch.equal(unprepared.params["f.weight"], plain.params["f.weight"])


def erf_loss(params, batch, context):
    return loss({**params, "f.bias": torch.erf(params["f.bias"])}, batch, context)


def branching_loss(params, batch, context):
    return loss(params, batch, context) * (2.0 if params["f.bias"].sum() > 1 else 1.0)


def random_loss(params, batch, context):
    return loss(params, batch, context) + torch.rand(()) * 0


ELSEWHERE = torch.tensor(2.0)


def closed_over_loss(params, batch, context):
    return loss(params, batch, context) * ELSEWHERE


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (erf_loss, "aten.erf.default is not among the native operations"),
        (branching_loss, "depends on the value of a tensor"),
        (random_loss, "draws random numbers"),
        (closed_over_loss, "neither in its parameters, batch nor context"),
    ],
)
def test_what_is_not_known_takes_the_generic_path(toy_federation, caplog, other, reason):
    client, begin = toy_federation.clients[0], start(toy_federation.tasks[0])
    with caplog.at_level(logging.DEBUG, "mmfl_fast.federation.native_steps"):
        (plain,), (ours,) = both([client], [begin], phases(first=other)[:1])
    assert reason in caplog.text
    assert torch.equal(ours.params["f.weight"], plain.params["f.weight"])


def test_native_and_generic_passes_mix(toy_federation):
    clients = toy_federation.clients[:2]
    starts = [start(toy_federation.tasks[0])] * 2
    for a, b in zip(*both(clients, starts, phases(second=erf_loss)), strict=True):
        assert distance(a.params, b.params) <= 1e-6


def test_a_loss_made_anew_in_every_round_is_not_recorded_for_ever(toy_federation):
    client, begin = toy_federation.clients[0], start(toy_federation.tasks[0])
    native, calls = NativeSteps(), []
    for number in range(20):

        def fresh(params, batch, context):
            calls.append(number)  # noqa: B023 - the round it was made in
            return loss(params, batch, context)

        native.prepare([client], [begin], phases(first=fresh)[:1], number)
    assert 0 < len(set(calls)) < 12


@pytest.mark.parametrize("method", ["fedavg", "fedmvp", "smil"])
def test_the_number_of_threads_changes_no_bit(toy_federation, small, set_threads, method):
    states = []
    for threads in (1, 3):
        set_threads(threads)
        state = mf.run(toy_federation, method, rounds=2, config=small(method, evaluate_every=2)).state
        states.append(state.models.tensors())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Narrow(Algorithm):
    """One logit less than there are classes."""

    def setup(self, federation, generator):
        return State(nn.init_linear("w", 6, 2, generator), ParameterTable({}))

    def loss(self, params, batch, context):
        return nn.cross_entropy(self.predict(params, batch.inputs), batch.labels)

    def predict(self, params, inputs):
        return nn.linear(params, "w", inputs.values["left"].flatten(1))


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_a_label_without_a_logit_is_an_error(toy_federation, choice):
    algorithm = Narrow(AlgorithmConfig(batch_size=8))
    engine = mf.federation.EngineConfig(native_steps=choice)
    with pytest.raises(IndexError):
        mf.federation.simulate(toy_federation, algorithm, rounds=1, engine=engine)
