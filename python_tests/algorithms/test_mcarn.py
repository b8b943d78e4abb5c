import math

import pytest
import torch
import torch.nn.functional as F

from mmfl_fast import data
from mmfl_fast.algorithms.mcarn import (
    angular_margin_loss,
    mean_square_off_diagonal,
    modalities_held,
    rows_per_modality,
    squared_overlap,
)
from mmfl_fast.federation import Context, part_of
from mmfl_fast.federation.batching import gather
from mmfl_fast.federation.local_training import train_clients

FDARN = {"margins": "equal", "calibration": 0.0}
WEIGHTS = ("orthogonality", "discrimination", "spread", "calibration")


def only(term):
    """Options under which cross-entropy and one more term of the loss are left."""
    return {name: float(name == term) for name in WEIGHTS}


def batch_of(run, index):
    client = run.federation.clients[index]
    return gather(client.task, client.train_rows)


def gradients(run, params, index, round_index, start=None):
    leaves = {n: t.clone().requires_grad_() for n, t in params.items() if part_of(n) != "margin"}
    context = Context(run.starts()[index] if start is None else start, round_index)
    loss = run.algorithm.loss({**params, **leaves}, batch_of(run, index), context)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))


def code(params, x, prefix=""):
    for i in range(2):
        x = x if i == 0 else F.relu(x)
        x = x @ params[f"{prefix}f.{i}.weight"].T + params[f"{prefix}f.{i}.bias"]
    x = x @ params[f"{prefix}T"].T
    return x / x.square().mean(dim=1, keepdim=True).sqrt()


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def off_diagonal(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def by_hand(params, client, start, reversal, calibrated):
    """The equations of the docstring in float64, for a client of one modality and two modalities in all."""
    (modality,) = client.modalities
    task, rows = client.task, client.train_rows
    x = task.inputs[modality][rows].double().flatten(1)
    h = F.relu(x @ params[f"phi.{modality}.weight"].T + params[f"phi.{modality}.bias"])
    s, p = code(params, h), code(params, h, "own.")
    logits = s @ params["psi.weight"].T + params["psi.bias"]
    logits = logits + p @ params["own.psi.weight"].T + params["own.psi.bias"]
    total = -torch.log_softmax(logits, 1)[torch.arange(len(rows)), task.labels[rows]].mean()
    total = total + 0.6 * (unit(s).T @ unit(p)).square().mean()

    names = ["image", "audio"]
    centres = unit(torch.stack([params[f"centre.{m}"] for m in names]))
    target, margin = names.index(modality), params[f"margin.{modality}"]
    # The shared code gets what the discriminator gains with the sign turned round.
    for told in ((1 + reversal) * s.detach() - reversal * s, p):
        angles = torch.arccos(unit(F.relu(told @ params["D.weight"].T + params["D.bias"])) @ centres.T)
        assert (angles[:, target] + margin < math.pi).all()
        scores = (
            torch.stack([angles[:, k] + (margin if k == target else 0.0) for k in range(2)], 1).cos() * 72
        )
        total = total - 0.4 * torch.log_softmax(scores, 1)[:, target].mean()
    total = total + 0.4 * off_diagonal(centres @ centres.T).square().mean()
    if calibrated:
        own, common = unit(params["own.psi.weight"]), unit(start["psi.weight"])
        total = total + 0.4 * off_diagonal(own @ own.T - common @ common.T).square().mean()
    return total


@pytest.mark.parametrize("options", [{}, FDARN])
@pytest.mark.parametrize(("index", "round_index"), [(1, 0), (6, 0), (6, 40)])
def test_the_loss_and_every_gradient_are_the_equations(trial, options, index, round_index):
    run = trial("mcarn", **options)
    start = run.starts()[index]
    generator = torch.Generator().manual_seed(1)
    params = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in start.items()}
    params |= {n: t for n, t in start.items() if part_of(n) == "margin"}
    loss, found = gradients(run, params, index, round_index)

    exact = {n: t.double().requires_grad_() for n, t in params.items()}
    client, before = run.federation.clients[index], {n: t.double() for n, t in start.items()}
    reversal = 2 / (1 + math.exp(-10 * round_index / 300)) - 1
    calibrated = options != FDARN
    value = by_hand(exact, client, before, reversal, calibrated)
    assert float(loss) == pytest.approx(float(value.detach()), rel=1e-4)
    expected = torch.autograd.grad(value, [exact[n] for n in found], allow_unused=True)
    for name, gradient in zip(found, expected, strict=True):
        wanted = torch.zeros_like(exact[name]) if gradient is None else gradient
        torch.testing.assert_close(
            found[name], wanted.float(), atol=2e-4, rtol=2e-3, msg=lambda m, n=name: n + m
        )


def test_angular_margin_on_worked_values():
    cosines = torch.tensor([[0.6, 0.2], [-0.5, 0.3], [-0.99, 0.1], [0.4, 0.8], [0.7, 0.1]])
    held = torch.tensor([[True, False], [False, True], [True, False], [True, True], [False, False]])
    margins, scale = [0.5, 0.2], 3.0

    def target(row, k, turned=None):
        row = row.tolist()
        mine = math.cos(math.acos(row[k]) + margins[k]) if turned is None else turned
        other = row[1 - k]
        return math.log(math.exp(scale * mine) + math.exp(scale * other)) - scale * mine

    # Row 2 is beyond pi with its margin, row 3 has both modalities, row 4 none.
    beyond = -0.99 - 0.5 * math.sin(0.5)
    values = [
        target(cosines[0], 0),
        target(cosines[1], 1),
        target(cosines[2], 0, beyond),
        (target(cosines[3], 0) + target(cosines[3], 1)) / 2,
    ]
    loss = angular_margin_loss(cosines, torch.tensor(margins), held, scale)
    assert float(loss) == pytest.approx(sum(values) / 4, rel=1e-5)
    assert float(angular_margin_loss(cosines, torch.tensor(margins), held & False, scale)) == 0


def test_a_row_upon_its_centre_has_a_finite_gradient():
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    held = torch.tensor([[True, False], [True, False]])
    (gradient,) = torch.autograd.grad(
        angular_margin_loss(cosines, torch.tensor([0.5, 0.5]), held, 72.0), cosines
    )
    assert gradient.isfinite().all()
    assert gradient[1, 0] < 0


def test_squared_overlap_is_that_of_the_codes():
    shared, private = torch.randn(2, 7, 5, dtype=torch.float64)
    counted = torch.arange(7) < 5
    expected = (unit(shared[:5]).T @ unit(private[:5])).square().mean()
    torch.testing.assert_close(squared_overlap(shared, private, counted), expected)
    halves = torch.eye(4, dtype=torch.float64)
    assert float(squared_overlap(halves[:2], halves[2:], torch.ones(2, dtype=torch.bool))) == 2 / 16
    assert float(squared_overlap(halves[[0, 0]], halves[[1, 2]], torch.ones(2, dtype=torch.bool))) == 2 / 16


def test_off_diagonal_on_worked_values():
    matrix = torch.tensor([[9.0, 1.0], [2.0, 9.0]])
    assert float(mean_square_off_diagonal(matrix)) == 2.5
    assert float(mean_square_off_diagonal(matrix[:1, :1])) == 0


def test_the_reversal_starts_at_nothing_and_grows(trial):
    algorithm = trial("mcarn", reversal_rounds=300).algorithm
    assert algorithm.reversal(0) == 0
    assert algorithm.reversal(30) == pytest.approx(math.tanh(0.5))
    assert algorithm.reversal(300) == algorithm.reversal(1000) == pytest.approx(math.tanh(5))


def test_the_discriminator_tells_modalities_and_not_clients(trial):
    run = trial("mcarn")
    names = [n for n in run.state.shared if part_of(n) == "centre"]
    assert names == ["centre.image", "centre.audio"]
    for index, expected in ((0, [1.0, 0.0]), (3, [1.0, 0.0]), (7, [0.0, 1.0])):
        held = modalities_held(batch_of(run, index).inputs, ["image", "audio"])
        assert (held.double() == torch.tensor(expected)).all()


def test_a_row_of_several_modalities_counts_for_those_it_has(toy_federation):
    federation = data.with_missing(toy_federation, rate=0.6, level="sample", seed=1)
    task = federation.tasks[0]
    held = modalities_held(gather(task, torch.arange(len(task.labels))).inputs, ["smell", "right", "left"])
    assert torch.equal(held[:, 1:], task.present.flip(1))
    assert not held[:, 0].any()
    assert len(held.unique(dim=0)) > 1


def test_margins_follow_the_rows_of_a_modality(trial, mixed_federation):
    counts = rows_per_modality(mixed_federation)
    assert counts == {
        task.name[:-1].replace("sound", "audio"): int(task.is_train.sum()) for task in mixed_federation.tasks
    }
    assert counts["image"] > counts["audio"]
    shared = trial("mcarn").state.shared
    assert float(shared["margin.image"]) == 0.5
    assert float(shared["margin.audio"]) == pytest.approx(0.5 * (counts["audio"] / counts["image"]) ** 0.25)
    equal = trial("mcarn", **FDARN).state.shared
    assert float(equal["margin.audio"]) == float(equal["margin.image"]) == 0.5


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("orthogonality", {"phi", "f", "T", "own"}),
        ("discrimination", {"phi", "f", "T", "own", "D", "centre"}),
        ("spread", {"centre"}),
        ("calibration", {"own"}),
    ],
)
def test_every_penalty_has_a_gradient(trial, term, parts):
    nothing, something = trial("mcarn", **only("")), trial("mcarn", **only(term))
    params, start = something.starts()[0], something.starts()[0]
    params["own.psi.weight"] = params["own.psi.weight"].flip(0)
    _, without = gradients(nothing, params, 0, 60, start)
    _, with_it = gradients(something, params, 0, 60, start)
    moved = {n for n in with_it if not torch.equal(without[n], with_it[n])}
    assert {part_of(n) for n in moved} == parts
    if term == "calibration":
        assert moved == {"own.psi.weight"}


def test_the_shared_code_unlearns_its_modality_and_the_private_one_learns_it(trial):
    run = trial("mcarn", **only("discrimination"), scale=4.0)
    plain = trial("mcarn", **only(""))
    index, params = 0, run.starts()[0]

    def modality_loss(changed):
        context = Context(params, 0)
        return float(
            run.algorithm.loss(changed, batch_of(run, index), context)
            - plain.algorithm.loss(changed, batch_of(run, index), context)
        )

    _, with_it = gradients(run, params, index, 300)
    _, without = gradients(plain, params, index, 300)
    step = {n: 0.02 * (with_it[n] - without[n]) for n in with_it}
    for prefix, rises in (("T", True), ("own.T", False)):
        changed = {n: t - step[n] if n == prefix else t for n, t in params.items()}
        assert (modality_loss(changed) > modality_loss(params)) == rises


def test_the_centres_learn_and_spread(trial):
    run = trial("mcarn", **only("spread"), learning_rate=0.03, local_epochs=4)
    cosines = []
    for params in (run.starts()[0], run.train(run.federation.clients[:1])[0]):
        image, audio = params["centre.image"], params["centre.audio"]
        cosines.append(abs(float(torch.cosine_similarity(image, audio, dim=0))))
    assert cosines[1] < 0.5 * cosines[0]


def test_each_phase_moves_its_parts_and_no_other(trial):
    run = trial("mcarn")
    client, start = run.federation.clients[0], run.starts()[0]
    moved = []
    for phase in run.algorithm.client_phases():
        (result,) = train_clients([client], [start], [phase], 1, 0)
        moved.append({n for n in start if not torch.equal(start[n], result.params[n])})
    assert {part_of(n) for n in moved[0]} == {"phi", "T", "psi", "own", "D", "centre"}
    assert {n for n in start if part_of(n) == "own"} <= moved[0]
    assert {part_of(n) for n in moved[1]} == {"f"}


def test_what_is_private_stays_and_heads_stay_inside_a_task(trial):
    run = trial("mcarn")
    params, clients = run.train(), run.federation.clients
    new = run.aggregate(params)
    sent = run.algorithm.upload(params[0], clients[0])
    assert {part_of(n) for n in sent} == {"f", "T", "D", "centre", "psi"}
    sizes = torch.tensor([c.num_train for c in clients], dtype=torch.float64)
    for client in clients:
        received = run.received(new, client)
        alike = [c.index for c in clients if c.task_index == client.task_index]
        for name in ("f.0.weight", "T", "D.bias", "centre.audio", "psi.weight"):
            members = alike if name == "psi.weight" else list(range(len(clients)))
            stacked = torch.stack([params[i][name].double() for i in members])
            share = sizes[members] / sizes[members].sum()
            expected = torch.tensordot(share, stacked, dims=1).float()
            torch.testing.assert_close(received[name], expected, atol=1e-6, rtol=1e-5)


def test_codes_keep_their_scale(trial):
    run = trial("mcarn")
    start = run.starts()[0]
    inputs = batch_of(run, 0).inputs
    louder = {n: 100 * t if n in ("T", "own.T") else t for n, t in start.items()}
    for codes in (run.algorithm.codes(start, inputs), run.algorithm.codes(louder, inputs)):
        for each in codes:
            torch.testing.assert_close(each.square().mean(dim=1), torch.ones(len(each)))


def test_both_codes_predict(trial):
    run = trial("mcarn")
    client, params = run.federation.clients[0], run.train()[0]
    inputs = gather(client.task, client.test_rows).inputs
    shared, private = run.algorithm.codes(params, inputs)
    logits = shared @ params["psi.weight"].T + params["psi.bias"]
    logits = logits + private @ params["own.psi.weight"].T + params["own.psi.bias"]
    torch.testing.assert_close(run.algorithm.predict(params, inputs), logits)
    assert not torch.equal(shared, private)
