import numpy as np
import pytest

from mmfl_fast import algorithms
from mmfl_fast.algorithms.fusion_backbone import FusionAlgorithm
from mmfl_fast.experiments.presets import load_experiment, preset_names
from mmfl_fast.federation import EngineConfig


def test_every_preset_is_valid():
    for name in preset_names():
        experiment = load_experiment(name)
        assert experiment.description
        experiment.refuse_unknown_options([experiment.algorithm, "local", "fedavg", "cross-fedavg", "m3fed"])


# These are made for the digits and for image-text pairs, and have presets there.
ELSEWHERE = ("3fm", "smil", "fedmvp", "joint-fedavg", "fedclip")


@pytest.mark.parametrize("method", [m for m in algorithms.names() if m not in ELSEWHERE])
def test_every_method_has_a_preset_on_the_federation_of_its_model(method):
    kind = algorithms.get(method)
    experiment = load_experiment("m3fed-five" if method == "m3fed" else method)
    reference = load_experiment("mfcpl" if issubclass(kind, FusionAlgorithm) else "m3fed-five")
    assert experiment.algorithm == method
    for part in ("rounds", "data", "missing"):
        assert getattr(experiment, part) == getattr(reference, part)
    engine = EngineConfig.model_fields
    assert {k: v for k, v in experiment.config.items() if k in engine} == {
        k: v for k, v in reference.config.items() if k in engine
    }
    own = {k: v for k, v in experiment.options_of(method).items() if k not in engine}
    assert kind.Config(**own) == kind.Config()
    assert set(experiment.methods[method]) <= set(own)


def test_changes_reach_their_section():
    experiment = load_experiment("demo", ["rounds=3", "data.alpha=0.4", "lambda=0.3", "missing.rate=0.5"])
    assert experiment.rounds == 3
    assert experiment.data == {"name": "demo", "alpha": 0.4}
    assert experiment.config["lambda"] == 0.3
    assert experiment.config["width"] == 64
    assert experiment.missing == {"rate": 0.5}


def test_an_option_goes_to_the_methods_that_know_it():
    experiment = load_experiment("demo", ["lambda=0.3"])
    assert experiment.options_of("m3fed")["lambda"] == 0.3
    assert "lambda" not in experiment.options_of("fedavg")
    experiment.refuse_unknown_options(["fedavg", "m3fed"])
    with pytest.raises(ValueError, match="unknown config key 'lambda'"):
        experiment.refuse_unknown_options(["fedavg", "local"])


def test_options_of_one_method():
    experiment = load_experiment("demo", ["methods.m3fed.clusters=2", "clusters=3"])
    assert experiment.options_of("m3fed")["clusters"] == 2


def test_a_change_for_all_replaces_what_the_file_says_for_one():
    assert load_experiment("m3fed-five").options_of("m3fed")["lambda"] == 0.6
    changed = load_experiment("m3fed-five", ["lambda=0.3"])
    assert changed.options_of("m3fed")["lambda"] == 0.3
    assert changed.options_of("m3fed")["clusters"] == 4
    for changes in (["lambda=0.3", "methods.m3fed.lambda=0.1"], ["methods.m3fed.lambda=0.1", "lambda=0.3"]):
        assert load_experiment("m3fed-five", changes).options_of("m3fed")["lambda"] == 0.1


@pytest.mark.parametrize(
    ("source", "changes", "told"),
    [
        ("dmo", [], "unknown preset 'dmo'; did you mean 'demo'"),
        ("demo", ["rounds"], "--set takes key=value; got 'rounds'"),
        ("demo", ["rounds=0"], "rounds.*greater than or equal to 1.*got 0"),
        ("demo", ["dta.alpha=1"], "sections are data.*got 'dta'"),
        ("demo", ["rounds=[1"], "not a YAML value"),
        ("demo", ["data.name.x=1"], "--set data.name.x: name is 'demo', which has no keys inside"),
    ],
)
def test_mistakes_are_told(source, changes, told):
    with pytest.raises(ValueError, match=told):
        load_experiment(source, changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.alhpa=1", "unknown option 'alhpa'.*did you mean 'alpha'"),
        ("data.alpha=much", "alpha must be a number, got 'much'"),
        ("dirichlet.alhpa=1", "unknown key of dirichlet 'alhpa'; did you mean 'alpha'"),
        ("missing.rat=0.5", "unknown key of missing 'rat'; did you mean 'rate'"),
        ("missing.level=sample", r"missing: needs 'rate'; got the keys \['level', 'seed'\]"),
    ],
)
def test_mistakes_in_the_data_are_told(change, told):
    with pytest.raises(ValueError, match=told):
        load_experiment("demo", [change]).federation(0)


@pytest.mark.parametrize("text", ["1e-3", "1.e-3", "+1E-3", "0.001"])
def test_a_power_of_ten_is_a_number_without_a_point_too(text):
    assert load_experiment("demo", [f"data.alpha={text}"]).data["alpha"] == 0.001


def test_unknown_options_name_the_nearest():
    experiment = load_experiment("demo", ["cluster=3"])
    with pytest.raises(ValueError, match="unknown config key 'cluster'; did you mean 'clusters'"):
        experiment.refuse_unknown_options(["m3fed"])


def test_unknown_keys_of_a_file_name_the_nearest(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {name: demo}\nround: 3\n")
    with pytest.raises(ValueError, match=r"unknown key in .*'round'; did you mean 'rounds'"):
        load_experiment(str(path))


@pytest.mark.parametrize("text", [b"- 1\n", b"a: [1\n", b"\xff"])
def test_a_file_that_is_no_mapping(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        load_experiment(str(path))


def test_the_seed_draws_the_partition():
    experiment = load_experiment("demo")
    first, again, other = (experiment.federation(seed).clients for seed in (0, 0, 1))
    assert [c.num_train for c in first] == [c.num_train for c in again]
    assert [c.num_train for c in first] != [c.num_train for c in other]
    pinned = load_experiment("demo", ["data.seed=0"]).federation(1).clients
    assert [c.num_train for c in first] == [c.num_train for c in pinned]


def test_missing_modalities_and_repartition_by_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {name: demo}\ndirichlet: {clients: 3, alpha: 0.5}\nmissing: {rate: 0.5, level: sample}\n"
    )
    federation = load_experiment(str(path)).federation(0)
    assert all(len(task.client_names) == 3 for task in federation.tasks)


def test_one_file_of_arrays_is_an_experiment(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "modality:acc": generator.normal(size=(60, 4)),
        "labels": np.arange(60) % 3,
        "clients": np.arange(60) % 5,
        "split": np.where(np.arange(60) % 4 == 0, "test", "train"),
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{npz: {tmp_path}/mine.npz, name: mine}}\n")
    (task,) = load_experiment(str(path)).federation(0).tasks
    assert task.name == "mine"
    assert len(task.client_names) == 5
    assert int((~task.is_train).sum()) == 15


def test_the_cpu_edition_differs_in_size_alone():
    full, small = load_experiment("m3fed-five"), load_experiment("m3fed-five-cpu")
    for method in ("local", "fedavg", "cross-fedavg", "m3fed"):
        kind = algorithms.get(method).Config
        engine = EngineConfig(**{k: v for k, v in full.options_of(method).items() if k == "evaluate_every"})
        own = [
            kind(**{k: v for k, v in e.options_of(method).items() if k != "evaluate_every"})
            for e in (full, small)
        ]
        assert own[0] == own[1] == kind()
        assert engine.evaluate_every == small.options_of(method)["evaluate_every"]
    assert small.data == {**full.data, "samples_per_client": 128}


def test_label_sorted_shards_by_yaml():
    experiment = load_experiment("demo", ["shards.clients=3", "shards.per_client=1"])
    federation = experiment.federation(0)
    assert all(len(task.client_names) == 3 for task in federation.tasks)
    digits = next(task for task in federation.tasks if task.num_classes == 10)
    held = [digits.labels[digits.owner == k].unique().tolist() for k in range(3)]
    assert sorted(map(len, held)) == [4, 4, 4]
    assert experiment.described()["shards"] == {"clients": 3, "per_client": 1}
    with pytest.raises(ValueError, match="unknown key of shards 'per_clent'; did you mean 'per_client'"):
        load_experiment("demo", ["shards.per_clent=1"]).federation(0)
    with pytest.raises(ValueError, match="dirichlet and shards both deal"):
        load_experiment("demo", ["shards.clients=3", "dirichlet.clients=3"]).federation(0)


def test_a_validation_part_comes_before_the_partition():
    whole = load_experiment("demo", ["dirichlet.clients=3"]).federation(0)
    changes = ["validation.share=0.25", "dirichlet.clients=3"]
    experiment = load_experiment("demo", changes)
    assert experiment.described()["validation"] == {"share": 0.25}
    for before, after in zip(whole.tasks, experiment.federation(0).tasks, strict=True):
        assert after.num_samples == int(before.is_train.sum())
        assert len(after.client_names) == 3
        assert 0.7 < float(after.is_train.double().mean()) < 0.8


@pytest.mark.parametrize(("backend", "present"), [("none", False), ("feature", True), ("oracle", True)])
def test_an_experiment_completes_what_is_missing(tmp_path, backend, present):
    rows = 40
    rng = np.random.default_rng(0)
    arrays = {"modality:a": rng.normal(size=(rows, 3)), "modality:b": rng.normal(size=(rows, 2))}
    split = np.where(np.arange(rows) % 4 == 3, "test", "train")
    np.savez(
        tmp_path / "pairs.npz", labels=np.arange(rows) % 2, clients=np.zeros(rows, int), split=split, **arrays
    )
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{npz: {tmp_path / 'pairs.npz'}}}\nmissing: {{rate: 0.5, level: sample}}\n")
    experiment = load_experiment(str(path), [f"completion.backend={backend}"])
    task = experiment.federation(0).tasks[0]
    assert bool(task.present[task.is_train].all()) == present
    if backend == "oracle":
        whole = load_experiment(str(path), ["missing=null"]).federation(0).tasks[0]
        assert all(np.array_equal(task.inputs[m], whole.inputs[m]) for m in task.inputs)
    assert experiment.described()["completion"] == {"backend": backend}


def test_only_the_methods_listed_train_on_what_is_filled_in():
    options = ["missing.rate=0.5", "missing.level=sample", "completion.methods=[fedmvp]"]
    experiment = load_experiment("fedmvp-wikipedia-cpu", options)
    assert experiment.completes("fedmvp")
    assert not experiment.completes("fusion-fedavg")
    assert not experiment.before_completion().completes("fedmvp")
    assert load_experiment("fedmvp-wikipedia-cpu", ["completion.methods=null"]).completes("fusion-fedavg")
    for value, told in (
        ("[fedmpv]", "unknown algorithm in completion.methods 'fedmpv'; did you mean 'fedmvp'"),
        ("fedmvp", "completion.methods must be a list of algorithms; got 'fedmvp'"),
    ):
        with pytest.raises(ValueError, match=told):
            load_experiment("demo", [f"completion.methods={value}"]).federation(0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("nois=1", "unknown key of completion 'nois'"),
        ("server_items=-1", "server_items must be >= 0, got -1"),
        ("server_items=many", "server_items must be an integer >= 0, got 'many'"),
        ("server_items=8", "task 'digits' has no raw image-text pairs, so that the server knows"),
    ],
)
def test_wrong_keys_of_completion_are_told(change, told):
    with pytest.raises(ValueError, match=told):
        load_experiment("demo", ["completion.backend=none", f"completion.{change}"]).federation(0)
