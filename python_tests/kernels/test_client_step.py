"""Recorded steps against autograd, operator by operator."""
# ruff: noqa: ARG005, E501 - all losses take the same arguments, each in a line

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmfl_fast.kernels import client_step

LEVELS = ["portable", "avx2", "avx512"]


def apart(program, sources, capacity):
    """The same program with every temporary in a tensor of its own, which ends where its last element does."""
    sizes = dict.fromkeys(program.arena.tolist(), 1)
    for buffer, offset, *axes in program.values.tolist():
        reach = sum((size - 1) * stride for size, stride in zip(axes[:4], axes[4:], strict=True))
        if buffer in sizes:
            sizes[buffer] = max(sizes[buffer], offset + reach + 1)
    for _, width, _, buffer, _ in sources.table.tolist():
        sizes[buffer] = max(sizes[buffer], capacity * width)
    places = {buffer: torch.full((size,), torch.nan) for buffer, size in sizes.items()}
    buffers, none = program.buffers.copy(), np.empty(0, dtype=np.int64)
    buffers[list(places)] = [t.data_ptr() for t in places.values()]
    constants = (*program.constants, *places.values())
    return replace(
        program, buffers=buffers, arena=none, arena_offsets=none, arena_size=0, constants=constants
    )


def step(loss, params, x, labels, rates=(0.1, 0.0, 0.0), batch_size=None, capacity=None, largest_norm=None):
    """Parameters and losses after one pass over all rows, by the kernel."""
    capacity = capacity or batch_size or len(x)
    rows = torch.arange(capacity) % len(x)
    leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
    batch = [x[rows], labels[rows]]
    recording = client_step.record(lambda: loss(leaves, *batch), list(leaves.values()))
    parameters = [t.detach() for t in leaves.values()]
    velocities = [torch.zeros_like(t) for t in params.values()] if rates[1] else []
    external = [*parameters, *velocities]
    moving = {i: [len(leaves) + i] if velocities else [] for i in range(len(leaves))}
    program = client_step.build_program(recording, external, batch, moving, largest_norm)
    sources = client_step.Sources.of([x, labels], len(external), [0, -100])
    order = torch.arange(len(x))

    def run(program):
        kept = [t.clone() for t in velocities]
        written = [torch.full_like(t, torch.nan) for t in params.values()]
        losses = np.full(-(-len(x) // (batch_size or len(x))), np.nan, dtype=np.float32)
        scratch = torch.full((max(1, program.scratch_size),), torch.nan)
        finite = client_step.take_steps(
            program, [*parameters, *kept], [*written, *kept], sources, order.data_ptr(), len(x),
            batch_size or len(x), capacity, client_step.Rates(*rates), scratch, losses.ctypes.data,
        )  # fmt: skip
        return written, losses, finite

    written, losses, finite = run(program)
    # Temporaries that share memory must not meet.
    for ours, alone in zip(written, run(apart(program, sources, capacity))[0], strict=True):
        torch.testing.assert_close(ours, alone, rtol=0, atol=0, equal_nan=True)
    return dict(zip(params, written, strict=True)), losses, finite


def plain(loss, params, x, labels, rates=(0.1, 0.0, 0.0), batch_size=None):
    leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
    rate, momentum, decay = rates
    optimiser = torch.optim.SGD(list(leaves.values()), lr=rate, momentum=momentum, weight_decay=decay)
    losses = []
    for rows in torch.arange(len(x)).split(batch_size or len(x)):
        optimiser.zero_grad()
        value = loss(leaves, x[rows], labels[rows])
        value.backward()
        optimiser.step()
        losses.append(value.item())
    return {n: t.detach() for n, t in leaves.items()}, losses


def compare(loss, params, x, labels, **options):
    rates = options.pop("rates", (0.1, 0.0, 0.0))
    capacity = options.pop("capacity", None)
    ours, losses, finite = step(loss, params, x, labels, rates, capacity=capacity, **options)
    expected, expected_losses = plain(loss, params, x, labels, rates, **options)
    assert finite
    torch.testing.assert_close(torch.tensor(expected_losses), torch.from_numpy(losses), rtol=2e-6, atol=2e-6)
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2e-6, atol=2e-6)


def problem(rows=12, width=9, classes=5):
    params = {
        "w": 0.5 * torch.randn(classes, width),
        "b": 0.1 * torch.randn(classes),
        "s": torch.rand(()) + 0.5,
    }
    labels = torch.randint(0, classes, (rows,))
    labels[rows // 2] = -100
    return params, torch.randn(rows, width), labels


def logits(p, x):
    return F.linear(x, p["w"], p["b"])


def weighted(p, x):
    return x[:, None, :] * p["w"]


LOSSES = {
    "cross_entropy": lambda p, x, y: F.cross_entropy(logits(p, x), y),
    "cross_entropy_none": lambda p, x, y: (F.cross_entropy(logits(p, x), y, reduction="none") * x[:, 0]).sum(),
    "tanh": lambda p, x, y: logits(p, x).tanh().square().mean() * p["s"],
    "sigmoid": lambda p, x, y: torch.sigmoid(logits(p, x)).sum(dim=1).square().mean(),
    "softplus": lambda p, x, y: F.softplus(30 * logits(p, x)).mean() + F.softplus(p["s"], beta=3.0),
    "relu_of_columns": lambda p, x, y: (x @ p["w"].T.relu()).exp().mean(dim=(0, 1)),
    "norms": lambda p, x, y: (p["w"] ** 2).sum(dim=1).sqrt().sum() + (p["w"].abs() + 1).pow(1.5).sum(),
    "logs": lambda p, x, y: torch.log(logits(p, x).square() + 1).sum() + torch.log1p(p["w"].square()).sum(),
    "waves": lambda p, x, y: (logits(p, x).sin() * p["w"][:, 0].cos()).sum() - 2 * p["b"].sum(),
    "logsumexp": lambda p, x, y: logits(p, x).logsumexp(dim=1).sum() + logits(p, x).logsumexp(0, True).sum(),
    "clamp": lambda p, x, y: logits(p, x).clamp(min=-0.5).sum() + logits(p, x).clamp(max=0.2).sum(),
    "where": lambda p, x, y: torch.where((y > 1) & ~(y == 3), logits(p, x)[:, 0], 2.0 / p["s"]).sum(),
    "masks": lambda p, x, y: (logits(p, x) * (y >= 2)[:, None]).sum() * y.clamp(1, 3).sum(),
    "pieces": lambda p, x, y: torch.cat([logits(p, x)[::2, 1:4], logits(p, x)[1::2, 1:4] * 2]).square().sum(),
    "stack": lambda p, x, y: torch.stack([logits(p, x), x[:, :5]], dim=1).square().sum(dim=(0, 1)).sqrt().sum(),
    "diagonal": lambda p, x, y: (p["w"] @ p["w"].T).diagonal().sum() + p["w"].abs().sum(),
    "reciprocal": lambda p, x, y: (1 - p["s"]) / (1 + logits(p, x).square()).sum() + p["s"].reciprocal(),
    "mean_all": lambda p, x, y: (logits(p, x) - logits(p, x).mean(dim=0, keepdim=True)).square().mean(),
    "largest": lambda p, x, y: (logits(p, x) - logits(p, x).amax(dim=1, keepdim=True)).exp().sum(),
    "any": lambda p, x, y: (p["w"].sum() * (x > 2).any()) + ((x > 0).any(dim=1).sum() * p["s"]),
    "all": lambda p, x, y: (logits(p, x)[:, 0] * (x > -1).all(dim=1)).sum() + p["s"] * (x < 4).all() + p["b"].sum() * (x < 0).all(),
    "unused": lambda p, x, y: p["s"] * x.sum(),
    "softmax": lambda p, x, y: (logits(p, x).softmax(dim=0) * x[:, :5]).sum() + (logits(p, x).softmax(1) * x[:, :5]).sum(),
    "batches": lambda p, x, y: (weighted(p, x) @ weighted(p, x).mT * x[0, 0]).square().mean() + weighted(p, x)[0].sum(),
    "gather": lambda p, x, y: logits(p, x).gather(1, y.clamp(min=0)[:, None]).square().sum(),
    "gather_shared": lambda p, x, y: (x[0, :5].expand(2, 5).gather(1, y.clamp(min=0).view(2, -1)) * x[:2, :6]).sum() * p["s"],
    "rows": lambda p, x, y: (logits(p, x) * x[:, :5][y.clamp(min=0)]).sum() * x[:, 1][y.clamp(min=0)].sum(),
    "masked": lambda p, x, y: logits(p, x).masked_fill((y < 2)[:, None], 0.5).square().sum() + y.masked_fill(y < 0, 1).sum() * p["s"],
    "interpolated": lambda p, x, y: (torch.lerp(logits(p, x), x[:, :5], 0.1).square() + torch.lerp(logits(p, x), x[:, 4:], 0.9).square()).sum(),
    "addcdiv": lambda p, x, y: torch.addcdiv(p["b"], x[:, :5], logits(p, x).square() + 1, value=-0.5).square().sum(),
    "addcmul": lambda p, x, y: torch.addcmul(p["b"], logits(p, x), x[:, :5], value=0.5).square().sum() + (p["w"].square() + 1).rsqrt().sum(),
    "gates": lambda p, x, y: (torch.sigmoid(9 * logits(p, x)) * torch.tanh(40 * x[:, :5] * p["s"])).sum() + torch.tanh(p["w"] * 1e-3).sum(),
    "steep": lambda p, x, y: (torch.sigmoid(300 * logits(p, x)) * x[:, :5]).sum() + p["w"].sum(),
    "lengths": lambda p, x, y: (F.normalize(logits(p, x) * (y > 0)[:, None], dim=1) * x[:, :5]).sum() + p["w"].norm() + p["b"].norm(dim=0, keepdim=True).sum(),
    "layer_norm": lambda p, x, y: (F.layer_norm(9 + logits(p, x), (5,), 1 + p["b"], p["w"][:, 0]) * x[:, 4:]).square().sum(),
    "layer_norm_of_two_axes": lambda p, x, y: (F.layer_norm(weighted(p, x), (5, 9)) + p["s"]).square().sum() * p["s"] + (F.layer_norm(weighted(p, x), (5, 9)) * x[:, None]).square().sum(),
    "layer_norm_of_other_strides": lambda p, x, y: (F.layer_norm(weighted(p, x).mT, (5,), 1 + p["b"]) * x[:, :, None]).square().mean(),
    "padded": lambda p, x, y: (F.pad(logits(p, x), (3, 1, 0, 3)).square() * F.pad(x, (0, 0, 3, 0), value=2.0)).sum() + F.pad(weighted(p, x), (1, -2, -1, 2)).exp().sum(),
    "filled_in_place": lambda p, x, y: (2 * logits(p, x)).masked_fill_((y < 2)[:, None], 0.5).square().sum(),
    "written_down": lambda p, x, y: (logits(p, x) * torch.from_numpy(np.arange(5.0) / 7).to(x) * torch.tensor(0.1, dtype=torch.float64)).square().sum(),
    "twice_differentiated": lambda p, x, y: torch.func.grad(lambda w: (x @ w.T).exp().mean())(p["w"]).square().sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_that_of_autograd(name):
    params, x, labels = problem()
    compare(LOSSES[name], {n: 0.3 * t for n, t in params.items()}, x, labels, rates=(0.01, 0.0, 0.0))


@pytest.mark.parametrize("rates", [(0.1, 0.0, 0.0), (0.1, 0.9, 0.0), (0.1, 0.0, 0.1), (0.1, 0.5, 0.01)])
@pytest.mark.parametrize("penalised", [False, True])
def test_sgd(rates, penalised):
    def loss(p, x, y):
        value = F.cross_entropy(logits(p, x), y, reduction="sum") / 4
        # torch.optim leaves what has no gradient where it is, the engine decays it.
        return value + 0 * p["s"] + (p["w"].square().sum() if penalised else 0)

    params, x, labels = problem()
    compare(loss, params, x, labels, rates=rates, batch_size=4)


def mlp_loss(p, x, y):
    hidden = F.relu(F.linear(x, p["w0"], p["b0"]))
    return F.cross_entropy(F.linear(hidden, p["w1"]), y, reduction="sum") / (y != -100).sum().clamp(min=1)


def mlp(rows, width, hidden, classes):
    generator = torch.Generator().manual_seed(rows + width)
    params = {
        "w0": torch.randn(hidden, width, generator=generator) / width**0.5,
        "b0": torch.zeros(hidden),
        "w1": torch.randn(classes, hidden, generator=generator) / hidden**0.5,
    }
    x = torch.randn(rows, width, generator=generator)
    return params, x, torch.randint(0, classes, (rows,), generator=generator)


# Around the register tiles and panels of every SIMD level, and beyond what is packed at once.
SHAPES = [
    (1, 1, 1, 1), (2, 3, 5, 2), (7, 15, 17, 3), (8, 16, 32, 4), (9, 17, 33, 10), (31, 63, 65, 2),
    (10, 784, 200, 10), (64, 1030, 40, 7), (3, 2, 1, 40),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    compare(mlp_loss, *mlp(*shape))


# Channels, kernel, and sizes of the pictures: odd ones, one pixel, less than a kernel, more than a vector, more
# pixels than are summed at once in one picture and in several.
PICTURES = [
    ((3, 5), (1, 5), (1, 11)), ((1, 4), (3, 3), (7, 6)), ((17, 33), (1, 5), (1, 2)), ((2, 3), (3, 3), (1, 1)),
    ((4, 64), (1, 5), (1, 128)), ((16, 9), (3, 1), (5, 4)), ((2, 40), (5, 3), (9, 33)),
    ((3, 4), (3, 3), (33, 40)), ((3, 33), (2, 2), (21, 25)),
]  # fmt: skip


def pictures(channels, kernel, size, channels_last=True, rows=3):
    """A loss of two convolutions with pooling, and its parameters and rows."""
    (c, o), (h, w) = channels, size
    generator = torch.Generator().manual_seed(c + 10 * o + 100 * w)
    params = {
        "k0": torch.randn(o, c, *kernel, generator=generator) / (c * kernel[1]) ** 0.5,
        "b0": 0.1 * torch.randn(o, generator=generator),
        "k1": torch.randn(3, o, *kernel, generator=generator) / (o * kernel[1]) ** 0.5,
    }
    padding = [k // 2 for k in kernel]

    def loss(p, x, y):
        shape = (len(x), h, w, c) if channels_last else (len(x), c, h, w)
        images = x.view(shape).movedim(-1, 1) if channels_last else x.view(shape)
        halves = [2 if s > 1 else 1 for s in size]
        hidden = F.conv2d(images, p["k0"], p["b0"], padding=padding)
        pooled = F.max_pool2d(F.relu(hidden), halves, ceil_mode=True)
        return F.conv2d(pooled, p["k1"], padding=padding).square().mean() + hidden[:, :, 0, 0].sin().sum()

    x = torch.randn(rows, c * h * w, generator=generator)
    return loss, params, x, torch.zeros(rows, dtype=torch.int64)


@pytest.mark.parametrize("shape", PICTURES)
@pytest.mark.parametrize("channels_last", [True, False])
def test_convolutions_and_pooling(shape, channels_last):
    compare(*pictures(*shape, channels_last))


def test_a_series_of_three_axes():
    _, params, x, labels = pictures((3, 5), (1, 5), (1, 11))

    def of_series(p, x, y):
        series = x.view(len(x), 11, 3).mT
        hidden = F.conv1d(series, p["k0"].squeeze(2), p["b0"], padding=2)
        return F.max_pool1d(hidden, 2, ceil_mode=True).square().sum() * 0.01 + p["k1"].sum()

    compare(of_series, params, x[:, :33], labels)


def test_the_largest_of_equals_and_of_nan():
    x = torch.tensor([[1.0, 1.0, -2.0, torch.nan, 3.0, 0.5]])
    params = {"s": torch.ones(6)}

    def loss(p, x, y):
        pooled = F.max_pool2d((x * p["s"]).view(1, 1, 1, 6), (1, 2))
        return (pooled * pooled.new_tensor([1.0, 10.0, 100.0])).sum()

    ours, _, _ = step(loss, params, x, torch.zeros(1, dtype=torch.int64), (1.0, 0.0, 0.0))
    expected, _ = plain(loss, params, x, torch.zeros(1, dtype=torch.int64), (1.0, 0.0, 0.0))
    torch.testing.assert_close(ours["s"], expected["s"], equal_nan=True)


@pytest.mark.parametrize("name", ["gates", "softmax", "batches", "lengths", "layer_norm", "pictures"])
def test_gradients_are_as_near_to_float64_as_those_of_torch(name):
    if name == "pictures":
        loss, params, x, labels = pictures((4, 64), (1, 5), (1, 128))
    else:
        loss, (params, x, labels) = LOSSES[name], problem()
    rates = (1.0, 0.0, 0.0)
    ours, _, _ = step(loss, params, x, labels, rates)
    single, _ = plain(loss, params, x, labels, rates)
    exact, _ = plain(loss, {n: t.double() for n, t in params.items()}, x.double(), labels, rates)
    for key, value in exact.items():
        of_torch = (single[key] - value).norm()
        assert (ours[key] - value).norm() <= 2 * of_torch + 1e-6 * value.norm()


@pytest.mark.parametrize("largest", [1e-3, 1e3])
@pytest.mark.parametrize("rates", [(0.5, 0.0, 0.0), (0.5, 0.9, 0.1)])
def test_clipped_gradients(largest, rates):
    params, x, labels = mlp(31, 65, 17, 3)
    ours, _, finite = step(mlp_loss, params, x, labels, rates, batch_size=16, largest_norm=largest)
    leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
    rate, momentum, decay = rates
    optimiser = torch.optim.SGD(list(leaves.values()), lr=rate, momentum=momentum, weight_decay=decay)
    for rows in torch.arange(31).split(16):
        optimiser.zero_grad()
        mlp_loss(leaves, x[rows], labels[rows]).backward()
        torch.nn.utils.clip_grad_norm_(list(leaves.values()), largest)
        optimiser.step()
    assert finite
    for name, leaf in leaves.items():
        torch.testing.assert_close(ours[name], leaf.detach(), rtol=2e-6, atol=2e-6)
        assert (leaf - params[name]).norm() > 0


def test_rows_that_fill_up_a_batch_change_nothing():
    params, x, labels = mlp(11, 20, 12, 3)
    compare(mlp_loss, params, x, labels, batch_size=4, capacity=4)
    compare(mlp_loss, params, x[:5], labels[:5], capacity=8)


@pytest.mark.parametrize("level", LEVELS)
def test_every_simd_level(level, level_environment):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_client_step as t\n"
        "for shape in t.SHAPES: t.compare(t.mlp_loss, *t.mlp(*shape))\n"
        "t.torch.manual_seed(0); p, x, y = t.problem()\n"
        "for loss in t.LOSSES.values():\n"
        "    t.compare(loss, {n: 0.3 * v for n, v in p.items()}, x, y, rates=(0.01, 0.0, 0.0))\n"
        "for shape in t.PICTURES: t.compare(*t.pictures(*shape))\n"
    )
    environment = {**level_environment(level), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, os.path.dirname(__file__)], env=environment, check=True)


def test_non_finite_numbers_spread_as_in_torch():
    params, x, labels = mlp(6, 20, 12, 3)
    for bad in (torch.nan, torch.inf):
        x[2, 3] = bad
        ours, losses, finite = step(mlp_loss, params, x, labels)
        expected, _ = plain(mlp_loss, params, x, labels)
        assert not finite
        assert np.isnan(losses).all()
        for name, tensor in expected.items():
            assert torch.equal(tensor.isfinite(), ours[name].isfinite()), name


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_that_is_no_column(label):
    params, x, labels = mlp(6, 20, 12, 3)
    labels[4] = label
    with pytest.raises(IndexError, match="label"):
        step(mlp_loss, params, x, labels.clone(), capacity=4, batch_size=4)


def filled_beside_a_copy(p):
    doubled = 2 * p["w"]
    copy = doubled.clone()
    return (doubled.masked_fill_(p["w"] > 0, 1.0) + copy).sum()


@pytest.mark.parametrize(
    "look",
    [
        lambda x: float(x[0, 0]),
        lambda x: x.tolist()[0][0],
        lambda x: x.numpy()[0, 0].item(),
        lambda x: np.asarray(x)[0, 0].item(),
        lambda x: np.from_dlpack(x)[0, 0].item(),
        lambda x: torch.from_numpy(2 * x.numpy()).sum(),
        lambda x: 1 + torch.equal(x, x),
        lambda x: 1 + torch.allclose(x, x),
        lambda x: 1 + bool((x > 0).any()),
    ],
)
def test_a_loss_that_looks_at_numbers_is_refused(look):
    with pytest.raises(client_step.NotCoveredError, match="depends on the value of a tensor"):
        step(lambda p, x, y: look(x) * p["s"], *problem())


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda p, x, y: p["w"].erf().sum(), "aten.erf.default"),
        (lambda p, x, y: p["w"].double().sum().float(), "float64"),
        (lambda p, x, y: p["w"].sum() * (y * y).sum(), "integers"),
        (lambda p, x, y: p["w"].clone().mul_(2).sum(), "writes to its argument"),
        (lambda p, x, y: x.masked_fill_(x > 0, 1.0).sum() * p["s"], "writes to its argument"),
        (lambda p, x, y: filled_beside_a_copy(p), "writes to its argument"),
        (
            lambda p, x, y: p["s"] * x.new_zeros(3).masked_fill_(x[0, :3] > 0, 1.0).sum(),
            "writes to its argument",
        ),
        (lambda p, x, y: p["w"].norm(p=3), "norm of order 3"),
        (lambda p, x, y: torch._foreach_add([p["w"]], [p["w"]])[0].sum(), "_foreach_add"),
        (lambda p, x, y: p["w"][:0].sum() + p["s"], "empty"),
        (lambda p, x, y: p["w"].reshape(5, 3, 1, 3, 1).sum(), "axes"),
        (lambda p, x, y: F.cross_entropy(logits(p, x), y, weight=p["b"].detach()), "class weights"),
        (lambda p, x, y: p["s"] * x.long().sum(), "rounding"),
        (lambda p, x, y: F.conv1d(x[:, None], p["w"][:, None], stride=2).sum(), "strides"),
        (lambda p, x, y: F.max_pool2d((x @ p["w"].T)[:, None, None], (1, 3)).sum(), "pooling but by two"),
        (lambda p, x, y: p["w"][:, y.clamp(min=0)].sum(), "one list of rows"),
        (lambda p, x, y: p["w"].gather(0, y.clamp(min=0)[None, :9]).sum(), "gather along axis 0"),
    ],
)
def test_what_is_not_covered_says_why(loss, reason):
    with pytest.raises(client_step.NotCoveredError, match=reason):
        step(loss, *problem())
