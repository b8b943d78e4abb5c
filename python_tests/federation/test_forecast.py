import dataclasses
import resource

import numpy as np
import pytest
import torch

import mmfl_fast as mf
from mmfl_fast import algorithms, data
from mmfl_fast.federation import EngineConfig, State, forecast, machine_limits
from mmfl_fast.federation.checkpoints import state_tensors
from mmfl_fast.federation.config import split_options
from mmfl_fast.federation.forecast import Needs, in_bytes
from mmfl_fast.federation.machine_limits import Room, free_disk, free_memory
from mmfl_fast.federation.parameter_table import ParameterTable
from mmfl_fast.federation.thinning import thinned


def foretold(federation, method, options, rounds=4, **further):
    kind = algorithms.get(method)
    engine, own = split_options(options, EngineConfig, kind.Config)
    return forecast.forecast(federation, kind(own), rounds=rounds, engine=engine, **further)


@pytest.fixture
def many():
    """400 clients of two tasks, more than a state is set up for."""
    rng = np.random.default_rng(0)
    tasks = [
        data.from_arrays(
            {name: rng.normal(size=(4 * clients, width)).astype(np.float32)},
            np.arange(4 * clients) % 3,
            np.repeat(np.arange(clients), 4),
            name=name,
        )
        for name, width, clients in (("x", 6, 300), ("y", 9, 100))
    ]
    return data.merge(tasks)


@pytest.mark.parametrize("method", ["m3fed", "fedavg", "local"])
def test_bytes_and_parameters_are_those_of_the_run(toy_federation, small, method, tmp_path):
    options = small(method)
    told = foretold(toy_federation, method, options)
    line = mf.run(toy_federation, method, rounds=1, config=options).history[0]
    assert told.sampled == told.clients == line["clients"]
    assert round(told.sampled * told.measured.up) == line["bytes_up"]
    assert round(told.sampled * told.measured.down) == line["bytes_down"]
    assert told.inputs == sum(t.nbytes for t in toy_federation.tasks[0].inputs.values())


def test_the_servers_items_count(toy_federation, small):
    (task,) = toy_federation.tasks
    items = {name: x[:5] for name, x in task.inputs.items()}
    made = dataclasses.replace(toy_federation, tasks=(dataclasses.replace(task, server_items=items),))
    plain, told = (foretold(fed, "fedmvp", small("fedmvp", items=5)) for fed in (toy_federation, made))
    assert told.inputs - plain.inputs == sum(x.nbytes for x in items.values()) > 0
    assert told.measured.server == plain.measured.server


@pytest.mark.parametrize("method", ["m3fed", "fedavg", "per-fedavg", "fedmsplit", "mat-fl"])
def test_the_state_of_many_clients_is_scaled_from_few(many, small, method):
    kind = algorithms.get(method)
    algorithm = kind(split_options(small(method), EngineConfig, kind.Config)[1])
    state = algorithm.setup(many, torch.Generator().manual_seed(0))
    # Of rows that share their tensors each will have its own.
    tables = {n: v for n, v in vars(state).items() if isinstance(v, ParameterTable)}
    bytes_of = {n: sum(t.nbytes for row in v for t in v[row].values()) for n, v in tables.items()}
    personal = bytes_of.pop("personal")
    kept_for = sum(bytes_of.pop(name) for name in algorithm.per_client)
    others = state_tensors(dataclasses.replace(state, **dict.fromkeys(tables, ParameterTable({}))))
    rest = sum(t.nbytes for t in others.values()) + sum(bytes_of.values())
    told = foretold(many, method, small(method))
    assert told.measured.clients < 250 < told.clients == 400
    # The clients set up are rounded in each task.
    assert told.measured.server == pytest.approx(rest, rel=0.05)
    assert told.clients * told.measured.personal == pytest.approx(personal, rel=0.02)
    assert told.clients * told.measured.kept_for == pytest.approx(kept_for, rel=0.02)
    assert told.measured.of_all_pairs == 0


@pytest.mark.parametrize("method", ["fedmsplit", "mat-fl", "m3fed", "fedavg"])
def test_a_server_keeps_little_of_a_population(small, method):
    clients = 200_000
    population = data.from_arrays(
        {"x": np.zeros((2 * clients, 2), dtype=np.float32)},
        np.arange(2 * clients) % 2,
        np.repeat(np.arange(clients), 2),
        name="many",
    )
    options = {"participation": 1000 / clients, "standardise": False, "evaluate_clients": 10}
    told = foretold(population, method, small(method, **options))
    on_disk = told.engine.model_copy(update={"client_state": "disk"})
    # Numbers of groups and modalities, and the pairs of 1,000 clients.
    assert told.needs(on_disk, told.sampled).server < 3 * (50 * clients + 16 * 1000**2)
    pairs = 0 if method == "fedavg" else 8 if method == "fedmsplit" else 16
    assert told.measured.of_a_pair == pairs
    least = told.needs(on_disk, told.sampled).total
    if method != "fedavg":
        assert told.needs(told.engine, told.sampled).personal > 3 * 4000 * told.measured.kept_for > 0
        assert with_free(told, memory=least).refusal().endswith("it fits with --set client_state=disk")
    # Pictures of the pairs are for those that a report can show.
    assert not told.measured.similarity


def test_a_server_that_compares_all_clients_is_refused_and_told_why(many, small):
    @dataclasses.dataclass(frozen=True)
    class Pairs(State):
        all: torch.Tensor

    class Compares(algorithms.get("local")):
        def setup(self, federation, generator):
            start, count = super().setup(federation, generator), len(federation.clients)
            return Pairs(start.shared, start.personal, torch.zeros(count, count, dtype=torch.float64))

    told = forecast.forecast(many, Compares(), rounds=2)
    assert told.measured.server == told.measured.of_all_pairs == 8 * 400**2
    refusal = with_free(told, memory=told.measured.server).refusal()
    assert "no setting of the engine helps" in refusal
    assert "1.22 MiB of it for all pairs of clients" in refusal


def test_processes_share_a_round_and_a_machine(many, small, monkeypatch):
    options = small("per-fedavg", participation=0.5)
    alone = foretold(many, "per-fedavg", options)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    told = foretold(many, "per-fedavg", options)
    assert (alone.world, alone.here, told.world, told.here) == (1, 1, 4, 2)
    m = told.measured
    one, each = alone.needs(alone.engine, 200), told.needs(told.engine, 200)
    # In memory every process has what all keep; models are of its own clients.
    assert (each.personal, each.server, each.standardised) == (one.personal, one.server, one.standardised)
    assert each.round == pytest.approx(50 * m.model + 200 * m.personal + 2 * 50 * m.up, abs=1)
    on_disk = EngineConfig(client_state="disk")
    assert told.needs(on_disk, 200).round == pytest.approx(50 * (m.model + m.personal + 2 * m.up), abs=1)
    assert told.round_seconds == pytest.approx(50 * m.train_seconds / told.threads)
    both = 2 * each.total + told.inputs
    assert with_free(told, memory=both).refusal() is None
    refusal = with_free(told, memory=both - 1).refusal()
    assert refusal.startswith(f"memory: the run needs {in_bytes(both)} more in 2 processes")
    # Files are shared inside a machine only.
    assert "client_state" not in refusal
    told = foretold(many, "per-fedavg", {**options, "client_state": "disk"})
    assert "for processes of one machine" in with_free(told).refusal()
    assert with_free(dataclasses.replace(told, here=4)).refusal() is None
    mapped = dataclasses.replace(told, here=4, mapped=1000)
    assert "standardised rows need 3.91 KiB" in with_free(mapped, scratch=3999).refusal()


def test_nothing_large_is_set_up_to_find_out(many, small, monkeypatch):
    seen, setup = [], algorithms.get("m3fed").setup

    def watched(self, federation, generator):
        seen.append(len(federation.clients))
        return setup(self, federation, generator)

    monkeypatch.setattr(algorithms.get("m3fed"), "setup", watched)
    monkeypatch.setattr(ParameterTable, "replace", lambda *_: pytest.fail("rows were made"))
    foretold(many, "m3fed", small("m3fed"))
    assert seen == [211] * 2


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_only_clients_that_have_taken_part_have_a_state_of_their_own(many, small, where):
    options = small("local", participation=0.1, client_state=where)
    few, more, all_ = (foretold(many, "local", options, rounds=rounds) for rounds in (2, 4, 100))
    each = few.measured.personal
    for told, replaced in ((few, 80), (more, 160), (all_, 400)):
        # Three slots in a file, or three checkpoints.
        extra = told.disk_needed - 3 * replaced * each
        assert extra == pytest.approx(3 * (told.measured.server + (800 if where == "disk" else 0)), abs=10)
        needed = told.needs(told.engine, told.sampled).personal
        in_memory = 3 * replaced * each + 700 * replaced
        assert needed == (400 * 7 if where == "disk" else pytest.approx(in_memory, abs=10))


def test_steps_tell_what_keeps_them_from_native_code(toy_federation, small):
    def kinds(method, federation=toy_federation, **options):
        return foretold(federation, method, small(method, **options)).measured.steps

    assert kinds("m3fed") == {"personal": "native", "global": "native"}
    assert set(kinds("m3fed", native_steps="off").values()) == {"native_steps is off"}
    assert set(kinds("m3fed", precision="bfloat16").values()) == {"precision is bfloat16"}
    assert set(kinds("m3fed", chunk=3).values()) == {"clients are stacked"}
    assert all(set(kinds(method).values()) == {"native"} for method in ("3fm", "mfcpl", "fedmvp"))
    incomplete = data.with_missing(toy_federation, rate=0.5, level="sample", seed=0)
    assert kinds("smil", incomplete) == {"bilevel": "what it does depends on the value of a tensor"}
    assert kinds("smil", support=["left"]) == {"bilevel": "native"}
    with mf.use_backend("reference"):
        assert "no native code" in kinds("m3fed")["personal"]


def test_times_are_of_processor_time_and_by_rows(mixed_federation, small, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(forecast, "_clock", lambda _: float(next(ticks)))
    told = foretold(mixed_federation, "local", small("local", participation=0.5, evaluate_every=2), rounds=5)
    measured = told.measured
    # Four clients of each task, one second each; of the rows of a task each has its share.
    assert measured.timed == 8
    assert measured.train_seconds == pytest.approx(1.0)
    assert measured.test_seconds == pytest.approx(1 / 4)
    threads = torch.get_num_threads()
    assert told.round_seconds == pytest.approx(4 / threads)
    assert told.run_seconds == pytest.approx((5 * 4 + 3 * 8 / 4) / threads)


def with_free(told, memory=10**15, disk=10**15, scratch=10**15):
    return dataclasses.replace(told, memory=Room(int(memory), "the machine"), disk=disk, scratch=scratch)


def test_what_cannot_fit_is_refused_with_a_setting_that_fits(many, small):
    told = foretold(many, "per-fedavg", small("per-fedavg", participation=0.5, width=64))
    assert with_free(told).refusal() is None
    needs = told.needs(told.engine, told.sampled)
    assert needs.total == sum(dataclasses.astuple(needs))
    assert needs.personal > needs.total / 2
    for free, named in (
        (needs.total - 1, ["client_state=disk"]),
        (0.24 * needs.total, ["client_state=disk", "participation="]),
    ):
        refusal = with_free(told, memory=free).refusal()
        assert refusal.startswith(f"memory: the run needs {in_bytes(needs.total)} more, the machine has")
        assert [name for name in named if name not in refusal] == []
        settings = [word.split("=") for word in refusal.split() if "=" in word]
        changed = {name: {"disk": "disk", "false": False}.get(value, value) for name, value in settings}
        again = foretold(
            many, "per-fedavg", small("per-fedavg", **{"participation": 0.5, "width": 64, **changed})
        )
        assert with_free(again, memory=free).refusal() is None
    assert "no setting of the engine helps" in with_free(told, memory=10).refusal()


def test_a_disk_that_is_too_small_is_refused(many, small):
    told = foretold(many, "per-fedavg", small("per-fedavg", client_state="disk", participation=0.1))
    # Three slots for whoever can have taken part in four rounds, and three checkpoints.
    slots = 3 * 4 * 40 * told.measured.personal
    assert told.disk_needed == pytest.approx(slots + 3 * (told.measured.server + 2 * 400), rel=1e-3)
    assert "on a larger disk with --out" in with_free(told, disk=told.disk_needed - 1).refusal()
    mapped = dataclasses.replace(told, mapped=1000)
    assert "set TMPDIR" in with_free(mapped, scratch=999).refusal()
    pictures = foretold(many, "m3fed", small("m3fed", evaluate_every=3))
    plain = foretold(many, "m3fed", small("m3fed", evaluate_every=4))
    assert pictures.disk_needed - plain.disk_needed == 2 * 400**2


def test_needs_follow_the_options(many, small):
    told = foretold(many, "local", small("local"))
    kept = told.needs(EngineConfig(standardise=False), 0)
    assert kept.standardised == kept.round == 0
    assert told.needs(EngineConfig(), 0).standardised == told.inputs
    assert isinstance(kept, Needs)


def test_a_thinned_federation_has_whole_clients_of_every_task(many):
    part = thinned(many, 40)
    assert [len(t.client_names) for t in part.tasks] == [30, 10]
    by_name = {c.name: c for c in many.clients}
    for client in part.clients:
        whole = by_name[client.name]
        for name in client.modalities:
            a, b = client.task.inputs[name], whole.task.inputs[name]
            assert torch.equal(a[client.train_rows], b[whole.train_rows])
        assert torch.equal(client.task.labels[client.test_rows], whole.task.labels[whole.test_rows])
    assert thinned(many, 400) is many
    assert [len(t.client_names) for t in thinned(many, 1).tasks] == [1, 1]


def test_memory_is_bounded_by_the_container_and_the_shell(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(machine_limits, "_CGROUPS", tmp_path)
    whole = free_memory(cpu)
    assert whole.bound == "the machine"
    assert whole.free > 2**20
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert free_memory(cpu) == (300_000, "the container")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(cpu).bound == "the machine"
    monkeypatch.setattr(machine_limits.resource, "getrlimit", lambda _: (1, resource.RLIM_INFINITY))
    assert free_memory(cpu).bound == "ulimit"
    assert free_memory(cpu).free < 0
    assert free_disk(tmp_path / "not" / "yet" / "there") == free_disk(tmp_path) > 0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1.5e6, "1.43 MiB"), (2e15, "1819 TiB")],
)
def test_bytes_for_people(count, text):
    assert in_bytes(count) == text


def test_nobody_to_train_is_an_error():
    task = data.from_arrays({"x": np.eye(4)}, [0, 1, 0, 1], [0, 0, 1, 1]).tasks[0]
    idle = data.Federation("idle", (dataclasses.replace(task, is_train=torch.zeros(4, dtype=torch.bool)),))
    with pytest.raises(ValueError, match="no client has a training row"):
        foretold(idle, "local", {})
