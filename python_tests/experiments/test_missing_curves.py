"""Gaps, breaking points and the files of a comparison over missing rates."""

import csv
import math

import numpy as np
import pytest

from mmfl_fast.experiments.missing_curves import missing_curves
from mmfl_fast.experiments.missing_files import write_missing_tables
from mmfl_fast.experiments.scores import ACCURACY, BYTES_UP, score_table

SEEDS = (0, 1, 2)
# Of method, rate and seed: fedavg loses much, mfcpl little, its ablation is between.
SCORES = {
    "fedavg": {0.2: (0.80, 0.82, 0.84), 0.6: (0.74, 0.75, 0.76), 0.9: (0.50, 0.52, 0.54)},
    "moon": {0.2: (0.70, 0.70, 0.70), 0.6: (0.69, 0.69, 0.69), 0.9: (0.64, 0.64, 0.64)},
    "mfcpl": {0.2: (0.81, 0.83, 0.88), 0.6: (0.80, 0.81, 0.85), 0.9: (0.78, 0.79, 0.80)},
    "mfcpl,cma=0": {0.2: (0.82, 0.84, 0.90), 0.6: (0.70, 0.70, 0.70), 0.9: (0.60, 0.60, 0.60)},
}


def tables_of(scores, setting=None, metric=ACCURACY):
    tables = []
    for rate in (0.9, 0.2, 0.6):
        results = {
            method: {
                seed: {metric.name: value, "per_dataset": {"har": {metric.name: value - 0.1}}}
                for seed, value in zip(SEEDS, by_rate[rate], strict=False)
            }
            for method, by_rate in scores.items()
            if rate in by_rate
        }
        tables.append(score_table(results, metric, {**(setting or {}), "missing.rate": rate}))
    return tables


def curves_of(scores):
    (curves,) = missing_curves(tables_of(scores))
    return curves


def test_rates_ascend_and_tables_are_methods_by_rates():
    curves = curves_of(SCORES)
    assert curves.rates == (0.2, 0.6, 0.9)
    table = curves.table(1)
    assert table.columns == ("0.2", "0.6", "0.9")
    assert table.title.startswith("Accuracy in %, all clients, over missing.rate, mean ±")
    assert [str(score) for score in table.rows["moon"]] == ["70.00 ± 0.00", "69.00 ± 0.00", "64.00 ± 0.00"]
    assert [table.is_best("mfcpl", i) for i in range(3)] == [False, True, True]
    assert str(curves.table(0).rows["moon"][0]) == "60.00 ± 0.00"


def test_the_gap_is_to_the_best_of_another_algorithm_seed_by_seed():
    curves = curves_of(SCORES)
    gap = curves.gap("mfcpl", 0.2, 1)
    assert gap.best == "fedavg"
    differences = np.array([0.81 - 0.80, 0.83 - 0.82, 0.88 - 0.84])
    assert gap.difference.mean == pytest.approx(differences.mean())
    assert gap.difference.std == pytest.approx(differences.std(ddof=1))
    assert str(gap) == "+2.00 ± 1.73 (fedavg)"
    assert curves.gap("mfcpl", 0.9, 1).best == "moon"
    # Not the full method of its own algorithm, though that is better.
    assert curves.gap("mfcpl,cma=0", 0.9, 1).best == "moon"
    assert curves.gap("fedavg", 0.2, 1).best == "mfcpl,cma=0"
    assert curves_of({m: s for m, s in SCORES.items() if "mfcpl" in m}).gap("mfcpl", 0.2, 1) is None


def test_the_gap_is_over_common_seeds():
    curves = curves_of({**SCORES, "mfcpl": {rate: values[:1] for rate, values in SCORES["mfcpl"].items()}})
    assert str(curves.gap("mfcpl", 0.9, 1)) == "+14.00 (moon)"


def test_the_breaking_point_is_the_first_rate_below_nine_tenths_of_the_own_score_at_the_lowest():
    curves = curves_of(SCORES)
    points = {method: curves.breaking_point(method, 1) for method in SCORES}
    # fedavg keeps 91 % at 0.6 and 63 % at 0.9; mfcpl keeps 94 %; its ablation 82 % at 0.6; moon 91 %.
    assert points == {"fedavg": 0.9, "moon": None, "mfcpl": None, "mfcpl,cma=0": 0.6}
    assert [curves.breaking_point_told(m, 1) for m in SCORES] == ["0.9", "above 0.9", "above 0.9", "0.6"]


def test_the_own_score_is_that_at_the_lowest_rate_not_the_best_one():
    rising = {0.2: (0.60,), 0.6: (0.80,), 0.9: (0.56,)}
    assert curves_of({"moon": rising, "mfcpl": rising}).breaking_point("moon", 1) is None


def test_a_score_that_is_not_there_yet_leaves_the_breaking_point_open():
    without = {rate: values for rate, values in SCORES["moon"].items() if rate != 0.6}
    curves = curves_of({**SCORES, "moon": without})
    assert math.isnan(curves.breaking_point("moon", 1))
    assert curves.breaking_point_told("moon", 1) == "n/a"
    assert curves.gap("moon", 0.6, 1) is None
    assert curves.gap("fedavg", 0.6, 1).best == "mfcpl"
    assert str(curves.table(1).rows["moon"][1]) == "n/a"


def test_other_axes_have_curves_of_their_own():
    tables = tables_of(SCORES, {"data.alpha": 0.1}) + tables_of(SCORES, {"data.alpha": 5})
    assert [curves.setting for curves in missing_curves(tables)] == [{"data.alpha": 0.1}, {"data.alpha": 5}]
    assert missing_curves(tables[:1]) == []
    assert missing_curves([score_table({"a": {0: {"accuracy": 1, "per_dataset": {}}}}, ACCURACY)]) == []


def test_one_data_set_is_shown_once():
    curves = curves_of(SCORES)
    assert curves.columns == ("har", "all clients")
    assert curves.shown == [0]


def test_files(tmp_path):
    tables = tables_of(SCORES, {"data.alpha": 0.1}) + tables_of(SCORES, {"data.alpha": 0.1}, BYTES_UP)
    written = write_missing_tables(missing_curves(tables), tmp_path / "new")
    assert [path.name for path in written] == ["missing.csv", "missing.md", "missing.tex"]
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 3
    (row,) = (
        r
        for r in rows
        if (r["dataset"], r["method"], r["missing_rate"]) == ("all clients", "mfcpl,cma=0", "0.6")
    )
    assert (row["data.alpha"], row["metric"], row["seeds"]) == ("0.1", "accuracy", "3")
    assert (row["best_other"], row["breaking_share"], row["breaking_point"]) == ("fedavg", "0.9", "0.6")
    assert float(row["gap"]) == pytest.approx(-0.05)
    assert {r["breaking_point"] for r in rows if r["method"] == "mfcpl"} == {""}
    text = written[1].read_text()
    assert text.count("\n| method | 0.2 | 0.6 | 0.9 |\n") == 2
    assert "| method | 0.2 | 0.6 | 0.9 | breaking point |" in text
    assert "below 90% of its own score at 0.2" in text
    assert written[2].read_text().count(r"\begin{table}") == 2
    assert write_missing_tables([], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
