"""Tables against NumPy, and what each writer makes of them."""

import csv
import io
import math

import numpy as np
import pytest
from rich.console import Console

from mmfl_fast.experiments.scores import (
    ACCURACY,
    BYTES_UP,
    CLIENT_PASS,
    MACRO_F1,
    UAR,
    metric_named,
    score_table,
    score_tables,
)
from mmfl_fast.experiments.significance import best_against_runner_up
from mmfl_fast.experiments.table_files import scores_csv, significance_csv, summary_csv, write_tables
from mmfl_fast.experiments.table_text import latex_table, markdown_table, print_table, terminal_table


def result(a: float, b: float, steps: float = 16.0) -> dict:
    per_dataset = {
        "digits": {"accuracy": a, "macro_f1": a / 2, "client_pass": 0.01 * a},
        "wine": {"accuracy": b, "macro_f1": b / 2, "client_pass": 0.01 * b},
    }
    overall = {"accuracy": (3 * a + b) / 4, "macro_f1": (a + b) / 4, "client_pass": 0.01 * (a + b)}
    return {**overall, "per_dataset": per_dataset, "steps_per_client": steps}


def accuracy_table(results: dict, setting: dict | None = None):
    return score_table(results, ACCURACY, setting)


def macro_f1_table(results: dict):
    return score_table(results, MACRO_F1)


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
    written = write_tables(score_tables(results), tmp_path / "new")
    names = ["scores.csv", "summary.csv", "tests.csv", "tables.md", "tables.tex"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    text = written[3].read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| m3fed | ")] != []
    assert text.count("\n| method |") == 3
    assert text.count("Best against runner-up") == 2


def test_least_time_is_best_and_is_not_tested() -> None:
    table = score_table({"a": {0: result(0.9, 0.5)}, "b": {0: result(0.1, 0.6)}}, CLIENT_PASS)
    assert [str(score) for score in table.rows["a"]] == ["9.0", "5.0", "14.0"]
    assert [table.is_best("a", i) for i in range(3)] == [False, True, False]
    assert significance_csv([table]).count("\n") == 1


def test_time_that_was_not_measured_has_no_table(results: dict) -> None:
    assert len(score_tables(results)) == 3
    for seeds in results.values():
        for r in seeds.values():
            r["client_pass"] = math.nan
    assert [table.metric.name for table in score_tables(results)] == ["accuracy", "macro_f1"]


def test_unequal_effort_is_shown_in_every_form(results: dict) -> None:
    assert "steps" not in markdown_table(accuracy_table(results))
    for r in results["local"].values():
        r["steps_per_client"] = 24.0
    table = accuracy_table(results)
    told = markdown_table(table)
    assert "| wine | all clients | steps |" in told
    assert [line.split("|")[-2].strip() for line in told.splitlines() if line.startswith("| ")][2:] == [
        "16.0",
        "24.0",
    ]
    assert "The methods differ in effort" in told
    assert r"all clients & steps \\" in latex_table(table)
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(table))
    assert "24.0" in console.file.getvalue()
    assert {row["steps_per_client"] for row in csv.DictReader(io.StringIO(summary_csv([table])))} == {
        "16.0",
        "24.0",
    }


def test_settings_are_columns_of_the_csv_and_in_the_title(results: dict) -> None:
    tables = [accuracy_table(results, {"data.alpha": alpha, "lambda": 0.6}) for alpha in (1, 0.4)]
    assert tables[1].title.startswith("Accuracy in %, data.alpha=0.4, lambda=0.6, mean ±")
    for text in (scores_csv(tables), summary_csv(tables), significance_csv(tables)):
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row["data.alpha"] for row in rows} == {"1", "0.4"}
        assert {row["lambda"] for row in rows} == {"0.6"}
        assert rows[0].keys() & {"method", "best"}


def test_latex_escapes_and_marks_the_best() -> None:
    table = accuracy_table({"a_b,x=1%": {0: result(0.9, 0.3)}, "c": {0: result(0.5, 0.4)}}, {"k_1": "#"})
    lines = latex_table(table, best_against_runner_up(table)).splitlines()
    assert r"a\_b,x=1\% & \textbf{90.00} & 30.00 & \textbf{75.00} \\" in lines
    assert lines[0] == r"\begin{table}"
    assert any(line.startswith(r"\caption{Accuracy in \%, k\_1=\#, one seed}") for line in lines)
    assert sum(line.endswith(r"\\") for line in lines) == 3
    several = accuracy_table({m: {s: result(0.9, 0.3) for s in (0, 1)} for m in "ab"})
    assert r"90.00 $\pm$ 0.00" in latex_table(several)


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


def test_what_is_told_of_all_together_has_one_column(results: dict) -> None:
    for number, seeds in enumerate(results.values(), start=1):
        for r in seeds.values():
            r["bytes_up"] = 1500.0 * number
    table = score_table(results, BYTES_UP)
    assert table.columns == ("all clients",)
    assert [str(table.rows[m][0]) for m in results] == ["1.5 ± 0.0", "3.0 ± 0.0"]
    assert [table.is_best(m, 0) for m in results] == [True, False]
    assert BYTES_UP in [t.metric for t in score_tables(results)]
    assert "| m3fed | **1.5 ± 0.0** |" in markdown_table(table)


def test_metrics_are_found_by_name() -> None:
    assert metric_named("uar") is UAR
    with pytest.raises(ValueError, match="unknown metric 'macro-f1'; did you mean 'macro_f1'"):
        metric_named("macro-f1")
