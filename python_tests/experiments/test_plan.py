"""Reading of methods and axes, the cells they span, and the file that keeps them."""

from pathlib import Path

import pytest

from mmfl_fast.experiments.plan import Axis, Method, Plan, PlanError, Setting, cell_folder, setting_folder

METHODS = tuple(map(Method.parse, ["local", "m3fed,clustering=none"]))


def plan(**changes: object) -> Plan:
    axes = (Axis("data.alpha", (1, 0.4)), Axis("lambda", (0, 0.3, 0.6)))
    given = {"preset": "demo", "changes": ("rounds=2",), "methods": METHODS, "seeds": (0, 1), "axes": axes}
    return Plan(**given | changes)


def test_a_method_has_options_of_its_own() -> None:
    method = Method.parse("m3fed,clustering=none,lambda=0.3,projection=false")
    assert method.algorithm == "m3fed"
    assert method.options == {"clustering": "none", "lambda": 0.3, "projection": False}
    experiment = plan(axes=()).experiment(Setting(()))
    assert method.options_in(experiment) == {**experiment.options_of("m3fed"), **method.options}


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("m3fd", "unknown algorithm 'm3fd'; did you mean 'm3fed'"),
        ("m3fed,clustering", "options are KEY=VALUE, comma-separated; got 'clustering'"),
        ("m3fed,a=[1", r"method 'm3fed,a=\[1': '\[1' is not a YAML value"),
    ],
)
def test_methods_that_cannot_be_read(label: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Method.parse(label)


def test_axis_values_are_yaml() -> None:
    assert Axis.parse("lambda=0,0.6,1e-3").values == (0, 0.6, 0.001)
    assert Axis.parse("data.name=mnist,hapt").values == ("mnist", "hapt")
    assert Axis.parse("data.samples_per_client=null,64").values == (None, 64)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lambda", "--over takes KEY=V1,V2,...; got 'lambda'"),
        ("lambda=", "--over takes KEY=V1,V2,...; got 'lambda='"),
        ("lambda=0,0.3,0", "each value may come once; got 0, 0.3, 0"),
        ("seed=0,1", "--seeds tells how many"),
        ("algorithm=local", "methods are arguments"),
        ("lambda={a: 1}", "values are numbers, words or null"),
    ],
)
def test_axes_that_cannot_be_read(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Axis.parse(text)


def test_cells_are_all_combinations_seed_by_seed() -> None:
    cells = list(plan().cells)
    assert len(cells) == 2 * 3 * 2 * 2
    assert [cell.seed for cell in cells] == [0] * 12 + [1] * 12
    assert [c.method.label for c in cells[:2]] == ["local", "m3fed,clustering=none"]
    assert [s.label for s in plan().settings][:2] == ["data.alpha=1, lambda=0", "data.alpha=1, lambda=0.3"]


def test_a_setting_changes_the_experiment() -> None:
    experiment = plan().experiment(plan().settings[-1])
    assert (experiment.data["alpha"], experiment.config["lambda"], experiment.rounds) == (0.4, 0.6, 2)


def test_every_cell_has_a_folder_of_its_own() -> None:
    with_slash = plan(axes=(Axis("data.npz", ("a/b.npz", "a_b.npz", "a/../b.npz")),))
    for one in (plan(), with_slash, plan(axes=())):
        folders = [cell_folder(Path("out"), cell) for cell in one.cells]
        assert len(set(folders)) == len(folders)
        assert {len(folder.parts) for folder in folders} == {len(folders[0].parts)}
    assert setting_folder(Path("out"), plan(axes=()).settings[0]) == Path("out")


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = plan(unequal=("local",), command="mmfl-fast compare ...")
    written.write(tmp_path / "new")
    read = Plan.read(tmp_path / "new")
    assert read == written
    assert [m.options for m in read.methods] == [m.options for m in written.methods]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods": METHODS + METHODS[:1]}, "methods: each may be named once; got local"),
        (
            {"axes": (Axis("lambda", (0,)), Axis("lambda", (1,)))},
            "each key may come once",
        ),
        (
            {"unequal": ("m3fed",)},
            "--allow-unequal m3fed: not among the methods local",
        ),
    ],
)
def test_plans_that_contradict_themselves(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plan(**changes)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"comparison\.yaml is missing"):
        Plan.read(tmp_path)
    for text in ("a: [1", "- 1", "preset: demo\n"):
        (tmp_path / "comparison.yaml").write_text(text)
        with pytest.raises(PlanError, match=r"comparison\.yaml is damaged"):
            Plan.read(tmp_path)
