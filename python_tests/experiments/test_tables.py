"""Tables against NumPy, and what each writer makes of them."""

import csv
import io
import math

import numpy as np
import pytest
from rich.console import Console

from mmfl_fast.experiments.tables import (
    accuracy_table,
    macro_f1_table,
    markdown_table,
    print_table,
    scores_csv,
    summary_csv,
    terminal_table,
    write_tables,
)


def result(a: float, b: float) -> dict:
    per_dataset = {
        "digits": {"accuracy": a, "macro_f1": a / 2},
        "wine": {"accuracy": b, "macro_f1": b / 2},
    }
    return {"accuracy": (3 * a + b) / 4, "macro_f1": (a + b) / 4, "per_dataset": per_dataset}


@pytest.fixture
def results() -> dict:
    drawn = np.random.default_rng(0).uniform(0.4, 0.9, size=(2, 3, 2))
    return {
        method: {seed: result(*drawn[i, seed]) for seed in range(3)}
        for i, method in enumerate(["m3fed", "local"])
    }


def test_mean_and_std_are_those_of_numpy(results: dict) -> None:
    table = accuracy_table(results)
    assert table.columns == ("digits", "wine", "all clients")
    for method, seeds in results.items():
        columns = {
            name: [r["per_dataset"][name]["accuracy"] for r in seeds.values()] for name in ("digits", "wine")
        }
        columns["all clients"] = [r["accuracy"] for r in seeds.values()]
        for score, values in zip(table.rows[method], columns.values(), strict=True):
            assert score.mean == pytest.approx(np.mean(values), abs=1e-15)
            assert score.std == pytest.approx(np.std(values, ddof=1), abs=1e-15)
            assert str(score) == f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"


def test_macro_f1_has_its_own_overall_column(results: dict) -> None:
    table = macro_f1_table(results)
    assert table.columns == ("digits", "wine", "mean of data sets")
    assert table.rows["local"][2].mean == pytest.approx(
        np.mean([r["macro_f1"] for r in results["local"].values()])
    )


def test_methods_keep_their_order(results: dict) -> None:
    assert list(accuracy_table(results).rows) == ["m3fed", "local"]


def test_one_seed_has_no_std() -> None:
    table = accuracy_table({"local": {4: result(0.5, 0.25)}})
    assert [str(score) for score in table.rows["local"]] == ["50.00", "25.00", "43.75"]
    assert table.title == "Accuracy in %, one seed"
    assert table.rows["local"][0].std is None


def test_title_tells_unequal_numbers_of_seeds(results: dict) -> None:
    del results["local"][2]
    assert accuracy_table(results).title.endswith("over 2 to 3 seeds")


def test_best_is_marked_as_printed() -> None:
    table = accuracy_table({"a": {0: result(0.900001, 0.5)}, "b": {0: result(0.900002, 0.4)}})
    assert [table.is_best(m, 0) for m in "ab"] == [True, True]
    assert [table.is_best(m, 1) for m in "ab"] == [True, False]


def test_one_method_is_not_best() -> None:
    table = accuracy_table({"a": {0: result(0.9, 0.5)}})
    assert not table.is_best("a", 0)


def test_nan_is_shown_and_never_best() -> None:
    table = accuracy_table({"a": {0: result(math.nan, 0.5), 1: result(0.9, 0.5)}, "b": {0: result(0.1, 0.5)}})
    assert str(table.rows["a"][0]) == "n/a"
    assert [table.is_best(m, 0) for m in "ab"] == [False, True]


def test_method_without_a_data_set() -> None:
    without = result(0.5, 0.5)
    del without["per_dataset"]["wine"]
    table = accuracy_table({"a": {0: result(0.9, 0.4)}, "b": {0: without}})
    assert [str(score) for score in table.rows["b"]] == ["50.00", "n/a", "50.00"]


def test_markdown_marks_the_best_and_escapes_pipes() -> None:
    text = markdown_table(accuracy_table({"a|b": {0: result(0.9, 0.3)}, "c": {0: result(0.5, 0.4)}}))
    assert text.splitlines()[2:] == [
        "| method | digits | wine | all clients |",
        "| --- | ---: | ---: | ---: |",
        r"| a\|b | **90.00** | 30.00 | **75.00** |",
        "| c | 50.00 | **40.00** | 47.50 |",
    ]


def test_long_csv_keeps_every_digit(results: dict) -> None:
    rows = list(csv.DictReader(io.StringIO(scores_csv([accuracy_table(results), macro_f1_table(results)]))))
    assert len(rows) == 2 * 2 * 3 * 3
    for row in rows:
        scores = results[row["method"]][int(row["seed"])]
        source = (
            scores
            if row["dataset"] in ("all clients", "mean of data sets")
            else scores["per_dataset"][row["dataset"]]
        )
        assert float(row["value"]) == source[row["metric"]]


def test_summary_csv(results: dict) -> None:
    rows = list(csv.DictReader(io.StringIO(summary_csv([accuracy_table(results)]))))
    assert len(rows) == 2 * 3
    values = [r["per_dataset"]["wine"]["accuracy"] for r in results["local"].values()]
    row = next(r for r in rows if (r["method"], r["dataset"]) == ("local", "wine"))
    assert (row["metric"], row["seeds"]) == ("accuracy", "3")
    assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-15)
    assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-15)


def test_summary_csv_of_one_seed_has_an_empty_std() -> None:
    rows = list(csv.DictReader(io.StringIO(summary_csv([accuracy_table({"a": {0: result(0.5, 0.5)}})]))))
    assert {row["std"] for row in rows} == {""}


def test_terminal_table_takes_names_literally() -> None:
    console = Console(file=io.StringIO(), width=120)
    table = accuracy_table({"[red]m": {0: result(0.9, 0.3)}, "c": {0: result(0.5, 0.4)}})
    console.print(terminal_table(table))
    assert "[red]m" in console.file.getvalue()
    assert "90.00" in console.file.getvalue()


def test_comparison_fits_eighty_columns(results: dict) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(accuracy_table(results)))
    assert str(accuracy_table(results).rows["local"][2]) in console.file.getvalue()


def test_into_a_pipe_every_number_stands_on_its_line(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    scores = {"accuracy": 0.5, "macro_f1": 0.5}
    wide = {**scores, "per_dataset": {f"data-set-{i}": scores for i in range(6)}}
    print_table(accuracy_table({"local": {0: wide, 1: wide}}))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.count("50.00 ± 0.00") == 7 for line in lines)
    assert any("data-set-5" in line for line in lines)


def test_a_narrow_terminal_cuts_no_number() -> None:
    console = Console(width=24, file=io.StringIO())
    console.print(terminal_table(accuracy_table({"local": {0: result(0.5, 0.25)}})))
    assert "…" not in console.file.getvalue()


def test_write_tables(results: dict, tmp_path) -> None:
    written = write_tables(results, tmp_path / "new")
    assert [path.name for path in written] == ["scores.csv", "summary.csv", "tables.md"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "scores.csv",
        "summary.csv",
        "tables.md",
    ]
    assert written[2].read_text(encoding="utf-8").count("| m3fed |") == 2


@pytest.mark.parametrize("empty", [{}, {"local": {}}])
def test_no_result_is_refused(empty: dict) -> None:
    with pytest.raises(ValueError, match="at least one method with at least one seed"):
        accuracy_table(empty)


def test_result_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match=r"results\['a'\]\[3\]: needs 'macro_f1'"):
        macro_f1_table({"a": {3: {"accuracy": 0.5, "per_dataset": {}}}})


def test_data_set_named_like_the_overall_column_is_refused() -> None:
    scores = {"accuracy": 0.5, "macro_f1": 0.5}
    with pytest.raises(ValueError, match="'all clients'"):
        accuracy_table({"a": {0: {**scores, "per_dataset": {"all clients": scores}}}})
