"""What the figures show, read back from matplotlib; and that odd inputs can be drawn at all."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from PIL import Image

from mmfl_fast.experiments import plots
from mmfl_fast.experiments.missing_curves import missing_curves
from mmfl_fast.experiments.scores import ACCURACY, CLIENT_PASS, UAR, Score, ScoreTable


def history(accuracies: list[float], **more: object) -> list[dict]:
    return [
        {
            "round": number,
            "train_loss": 2.0 - a,
            "accuracy": a,
            "per_dataset": {"digits": {"accuracy": a}, "wine": {"accuracy": a / 2}},
            **more,
        }
        for number, a in enumerate(accuracies, start=1)
    ]


def similarity(count: int) -> np.ndarray:
    drawn = np.random.default_rng(count).uniform(0.4, 0.6, size=(count, count))
    matrix = (drawn + drawn.T) / 2
    np.fill_diagonal(matrix, 1.0)
    return matrix


def names(count: int) -> list[str]:
    return [f"c{i}" for i in range(count)]


def row_labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def matrix_of(figure) -> np.ndarray:
    return np.ma.filled(figure.axes[0].collections[0].get_array(), np.nan)


def test_png_is_rendered_without_pyplot() -> None:
    data = plots.png(plots.train_loss_by_round({"local": {0: history([0.5, 0.6])}}))
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert matplotlib.rcParams["figure.dpi"] == matplotlib.rcParamsDefault["figure.dpi"]


def test_curves_are_means_with_a_band_of_one_std() -> None:
    runs = {0: history([0.5, 0.7]), 1: history([0.6, 0.9]), 2: history([0.4, 0.5])}
    figure = plots.score_by_round({"m3fed": runs}, ACCURACY)
    assert [axes.get_title() for axes in figure.axes] == ["digits", "wine", "all clients"]
    values = 100 * np.array([[0.5, 0.7], [0.6, 0.9], [0.4, 0.5]])
    for axes, scale in zip(figure.axes, (1, 0.5, 1), strict=True):
        assert axes.lines[0].get_xdata() == pytest.approx([1, 2])
        assert axes.lines[0].get_ydata() == pytest.approx(scale * values.mean(axis=0))
        band = axes.collections[0].get_paths()[0].vertices
        mean, std = scale * values.mean(axis=0), scale * values.std(axis=0, ddof=1)
        assert band[:, 1].max() == pytest.approx((mean + std).max())
        assert band[:, 1].min() == pytest.approx((mean - std).min())


def test_one_seed_has_no_band() -> None:
    figure = plots.score_by_round({"m3fed": {0: history([0.5, 0.7])}}, ACCURACY)
    assert not figure.axes[0].collections


def test_seeds_are_averaged_where_all_have_the_round() -> None:
    figure = plots.train_loss_by_round({"m3fed": {0: history([0.5, 0.7, 0.8]), 1: history([0.6, 0.9])}})
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([1, 2])


def test_rounds_without_evaluation_are_passed_over() -> None:
    lines = [{"round": 1, "train_loss": 2.0}, *history([0.1, 0.7])[1:]]
    figure = plots.score_by_round({"local": {0: lines}}, ACCURACY)
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([2])


def test_nothing_to_draw_gives_none() -> None:
    assert plots.score_by_round({"local": {0: [{"round": 1, "train_loss": 2.0}]}}, ACCURACY) is None
    assert plots.train_loss_by_round({"local": {0: []}}) is None
    assert plots.clusters_by_round(history([0.5]), names(2), ["a", "a"]) is None
    assert plots.similarity_map(np.full((2, 2), np.nan), names(2), ["a", "a"]) is None
    assert plots.accuracy_by_client({"local": {0: [np.nan, np.nan]}}, ["a", "a"]) is None


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_round_is_visible(seeds: int) -> None:
    figure = plots.score_by_round({"local": {seed: history([0.5]) for seed in range(seeds)}}, ACCURACY)
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert figure.axes[0].get_xticks() == pytest.approx([1])
    plots.png(figure)


def test_methods_are_told_apart_beyond_the_palette() -> None:
    figure = plots.train_loss_by_round({f"m{i}": {0: history([0.5, 0.6])} for i in range(20)})
    styles = {(to_hex(line.get_color()), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 20
    assert len(figure.legends[0].get_texts()) == 20


def test_names_are_no_mathematics_and_stay_in_the_legend() -> None:
    lines = history([0.5, 0.6])
    for line in lines:
        line["per_dataset"] = {"a$_{$b": {"accuracy": 0.5}}
    figure = plots.score_by_round({"_m": {0: lines}, "x^$2$": {0: lines}}, ACCURACY)
    assert len(figure.legends[0].get_texts()) == 2
    plots.png(figure)


@pytest.mark.parametrize(
    ("clusters", "labels"), [([0, -1, 0], ["no cluster", "cluster 0"]), ([-1, -1, -1], [])]
)
def test_clients_in_no_cluster_are_told_as_such(clusters: list[int], labels: list[str]) -> None:
    figure = plots.similarity_map(similarity(3), names(3), ["a", "a", "a"], clusters)
    assert [text.get_text() for text in figure.axes[0].texts] == labels


def test_similarity_is_sorted_by_cluster_then_group() -> None:
    matrix, groups, clusters = similarity(5), ["b", "a", "b", "a", "b"], [1, 0, 0, 1, 1]
    figure = plots.similarity_map(matrix, names(5), groups, clusters)
    order = [2, 1, 0, 4, 3]
    assert row_labels(figure) == [f"c{i}" for i in order]
    assert matrix_of(figure) == pytest.approx(matrix[np.ix_(order, order)])
    boundaries = {tuple(line.get_ydata()) for line in figure.axes[0].lines if line.get_xdata()[0] == 0}
    assert boundaries == {(2, 2)}
    assert [text.get_text() for text in figure.axes[0].texts] == ["cluster 0", "cluster 1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a"]


def test_similarity_colours_are_centred_on_unrelated() -> None:
    figure = plots.similarity_map(similarity(6), names(6), ["a"] * 6)
    low, high = figure.axes[0].collections[0].get_clim()
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high < 1.0


def test_absent_clients_are_left_out() -> None:
    matrix = similarity(4)
    matrix[1], matrix[:, 1] = np.nan, np.nan
    figure = plots.similarity_map(matrix, names(4), ["a"] * 4, [0, -1, 0, 1])
    assert row_labels(figure) == ["c0", "c2", "c3"]
    assert figure.axes[0].get_xlabel() == "3 of 4 clients took part in this round"


def test_single_nan_entries_are_drawn() -> None:
    matrix = similarity(4)
    matrix[0, 2] = matrix[2, 0] = np.nan
    figure = plots.similarity_map(matrix, names(4), ["a"] * 4)
    assert np.isnan(matrix_of(figure)).sum() == 2
    plots.png(figure)


@pytest.mark.parametrize("clusters", [None, [0]])
def test_one_client(clusters: list[int] | None) -> None:
    for draw in (plots.similarity_map, plots.consensus_map):
        plots.png(draw(np.ones((1, 1)), ["only"], ["a"], clusters))


def test_many_clients_thin_their_labels() -> None:
    count = 200
    figure = plots.similarity_map(similarity(count), names(count), [f"g{i % 3}" for i in range(count)])
    assert len(row_labels(figure)) == 50
    assert matrix_of(figure).shape == (count, count)
    plots.png(figure)


def test_sixty_four_clients_keep_all_labels() -> None:
    assert len(row_labels(plots.similarity_map(similarity(64), names(64), ["a"] * 64))) == 64


def test_labels_of_small_clusters_do_not_touch() -> None:
    figure = plots.similarity_map(similarity(60), names(60), ["a"] * 60, list(range(20)) + [20] * 40)
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert len(heights) == 21
    assert min(np.diff(heights)) > 0.03 * 60


def test_consensus_colours_start_at_zero() -> None:
    figure = plots.consensus_map(np.array([[0.7, 0.3], [0.4, 0.6]]), names(2), ["a", "b"], [0, 1])
    assert figure.axes[0].collections[0].get_clim() == pytest.approx((0.0, 0.7))


def test_clusters_by_round_sorts_clients_by_group() -> None:
    lines = [{"round": 1, "clusters": [-1, 0, 1]}, {"round": 2}, {"round": 3, "clusters": [2, 0, 1]}]
    figure = plots.clusters_by_round(lines, names(3), ["b", "a", "b"])
    assert row_labels(figure) == ["c0", "c2", "c1"]
    assert matrix_of(figure) == pytest.approx(np.array([[-1, 2], [1, 1], [0, 0]]))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "3"]
    told = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert told == ["b", "a", "not yet drawn", "cluster 0", "cluster 1", "cluster 2"]


def test_cluster_colours_are_those_of_the_legend() -> None:
    lines = [{"round": 1, "clusters": [-1, 0, 1, 2]}]
    figure = plots.clusters_by_round(lines, names(4), ["a"] * 4)
    image = figure.axes[0].collections[0]
    drawn = [to_hex(image.cmap(image.norm(value))) for value in (-1, 0, 1, 2)]
    assert drawn == [to_hex(patch.get_facecolor()) for patch in figure.legends[1].get_patches()]


def test_dots_are_the_clients_of_each_data_set() -> None:
    scores = {"local": {0: [0.1, 0.2, 0.9]}, "m3fed": {0: [0.3, np.nan, 0.8], 1: [0.5, 0.7, 0.6]}}
    figure = plots.accuracy_by_client(scores, ["a", "a", "b"])
    axes = figure.axes[0]
    dots = [c.get_offsets()[:, 1] for c in axes.collections if isinstance(c, PathCollection)]
    assert [sorted(d) for d in dots] == [
        pytest.approx([10, 20]), pytest.approx([30, 50, 70]), pytest.approx([90]), pytest.approx([60, 80])
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"affinity": np.ones((2, 3))}, r"matrix: expected \[3, 3\] for 3 clients; got \[2, 3\]"),
        ({"groups": ["a"]}, r"groups: expected one per client \(3\); got 1"),
        ({"clusters": [0, 1]}, r"clusters: expected one per client \(3\); got 2"),
    ],
)
def test_sizes_that_differ_are_refused(change: dict, message: str) -> None:
    arguments = {"affinity": similarity(3), "names": names(3), "groups": ["a"] * 3, "clusters": [0, 0, 1]}
    with pytest.raises(ValueError, match=message):
        plots.similarity_map(**{**arguments, **change})


def test_clusters_of_other_clients_are_refused() -> None:
    with pytest.raises(ValueError, match="round 7: expected a cluster for each of 3 clients; got 2"):
        plots.clusters_by_round([{"round": 7, "clusters": [0, 1]}], names(3), ["a"] * 3)


def test_scores_of_other_clients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores\['local'\]\[5\]: expected 2, one per client; got 1"):
        plots.accuracy_by_client({"local": {5: [0.5]}}, ["a", "b"])


def scores(*values: list[float]) -> tuple[Score, ...]:
    return tuple(Score(dict(enumerate(v))) for v in values)


def test_sweep_draws_means_with_error_bars_of_one_std() -> None:
    sweep = {
        "m3fed": {0.6: scores([0.7, 0.9], [0.5]), 0.0: scores([0.4, 0.6], [0.3])},
        "local": {0.0: scores([0.2, 0.2], [0.1]), 0.6: scores([float("nan")], [0.1])},
    }
    figure = plots.score_over("lambda", sweep, ("digits", "all clients"), ACCURACY)
    digits, overall = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["digits", "all clients"]
    assert overall.get_xlabel() == "lambda"
    first, second = digits.containers
    assert first.lines[0].get_ydata() == pytest.approx([50, 80])
    assert first.lines[0].get_xdata() == pytest.approx([0, 0.6], abs=0.07)
    assert second.lines[0].get_ydata() == pytest.approx([20])
    std = 100 * np.std([0.7, 0.9], ddof=1)
    bar = first.lines[2][0].get_segments()[1]
    assert bar[:, 1] == pytest.approx([80 - std, 80 + std])
    assert first.lines[0].get_xdata()[0] != second.lines[0].get_xdata()[0]
    assert [label.get_text() for label in digits.get_xticklabels()] == ["0", "0.6"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["m3fed", "local"]
    plots.png(figure)


def test_bars_are_milliseconds_with_error_bars() -> None:
    rows = {
        m: tuple(Score({0: a, 1: 3 * a}, CLIENT_PASS) for a in values)
        for m, values in (("local", (0.001, 0.002)), ("m3fed", (0.003, 0.004)))
    }
    figure = plots.client_pass_bars(ScoreTable(CLIENT_PASS, ("digits", "all clients"), rows, {}))
    (axes,) = figure.axes
    assert axes.get_ylabel() == "ms per client and round"
    groups = [container for container in axes.containers if isinstance(container, BarContainer)]
    heights = [[patch.get_height() for patch in bars] for bars in groups]
    assert heights == [pytest.approx([2, 4]), pytest.approx([6, 8])]
    first, second = (bars.patches[0] for bars in groups)
    assert second.get_x() >= first.get_x() + first.get_width()
    plots.png(figure)


def test_agreement_is_drawn_up_to_one() -> None:
    lines = [{"round": r, "adjusted_rand_index": a} for r, a in ((1, 0.2), (3, -0.1))]
    others = {"local": {0: [{"round": 1}]}, "m3fed": {0: [{"round": 2}]}}
    assert plots.agreement_by_round(others) is None
    (axes,) = plots.agreement_by_round({**others, "m3fed": {0: [*lines, {"round": 4}]}}).axes
    assert len(axes.lines) == 1
    (text,) = axes.figure.legends[0].get_texts()
    assert text.get_text() == "m3fed"
    everyone = plots.train_loss_by_round({"local": {0: history([0.5])}, "m3fed": {0: history([0.6])}})
    assert to_hex(axes.lines[0].get_color()) == to_hex(everyone.axes[0].lines[1].get_color())
    assert axes.lines[0].get_ydata() == pytest.approx([0.2, -0.1])
    low, high = axes.get_ylim()
    assert low < -0.1
    assert high >= 1


def test_another_score_is_read_where_it_was_computed() -> None:
    lines = history([0.5, 0.7, 0.9])
    for line in lines[1:]:
        line["uar"] = line["accuracy"] / 2
        line["per_dataset"]["digits"]["uar"] = line["accuracy"] / 4
    assert plots.score_by_round({"old": {0: lines[:1]}}, UAR) is None
    figure = plots.score_by_round({"new": {0: lines}}, UAR)
    assert [axes.get_title() for axes in figure.axes] == ["digits", "wine", "mean of data sets"]
    digits, wine, overall = (axes.lines[0] for axes in figure.axes)
    assert digits.get_xdata() == pytest.approx([2, 3])
    assert digits.get_ydata() == pytest.approx([17.5, 22.5])
    assert np.isnan(wine.get_ydata()).all()
    assert overall.get_ydata() == pytest.approx([35, 45])
    assert figure.axes[0].get_ylabel() == "Unweighted average recall in %"


def test_measures_have_a_panel_each_with_the_methods_that_tell_them() -> None:
    lines = [{"round": r, "self_weight": 0.1 * r, "prototype_distance": d} for r, d in ((1, 3.0), (2, None))]
    histories = {"local": {0: [{"round": 1}]}, "mfcpl": {0: lines, 1: lines}}
    assert plots.measures_by_round(histories, []) is None
    figure = plots.measures_by_round(histories, ["self_weight", "prototype_distance"])
    assert [axes.get_title() for axes in figure.axes] == ["self weight", "prototype distance"]
    assert [axes.lines[0].get_ydata().tolist() for axes in figure.axes] == [[0.1, 0.2], [3.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mfcpl"]
    plots.png(figure)


def test_presence_shows_the_parts_from_which_something_is_missing() -> None:
    train = [{"acc": 0.0, "gyro": 1.0}, {"acc": 0.25, "gyro": 1.0}, {"image": 1.0}]
    test = [{"acc": 1.0, "gyro": 1.0}, {}, {"image": 1.0}]
    figure = plots.presence_map({"training rows": train, "test rows": test}, names(3))
    assert [axes.get_title() for axes in figure.axes] == ["training rows", ""]
    nan = np.nan
    expected = np.array([[0, 1, nan], [0.25, 1, nan], [nan, nan, 1]])
    assert matrix_of(figure) == pytest.approx(expected, nan_ok=True)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["acc", "gyro", "image"]
    assert row_labels(figure) == names(3)
    plots.png(figure)
    both = plots.presence_map({"training rows": train, "test rows": train}, names(3))
    assert [axes.get_title() for axes in both.axes][:2] == ["training rows", "test rows"]
    assert plots.presence_map({"training rows": test}, names(3)) is None
    with pytest.raises(ValueError, match=r"test rows: expected one mapping per client \(3\); got 2"):
        plots.presence_map({"test rows": test[:2]}, names(3))


def over_missing(rates: dict[float, dict[str, list[float]]]):
    tables = [
        ScoreTable(
            ACCURACY,
            ("har", "all clients"),
            {m: scores(values, values) for m, values in methods.items()},
            {},
            {"missing.rate": rate},
        )
        for rate, methods in rates.items()
    ]
    (curves,) = missing_curves(tables)
    return curves


def test_curves_over_missing_rates_have_bands_of_one_std() -> None:
    curves = over_missing({0.8: {"mfcpl": [0.5, 0.7], "fedavg": [0.3]}, 0.2: {"mfcpl": [0.8, 0.8]}})
    (axes,) = plots.score_over_missing(curves).axes
    assert axes.get_title() == "har"
    first, second = axes.lines
    assert first.get_xdata() == pytest.approx([0.2, 0.8])
    assert first.get_ydata() == pytest.approx([80, 60])
    assert second.get_ydata() == pytest.approx([np.nan, 30], nan_ok=True)
    std = 100 * np.std([0.5, 0.7], ddof=1)
    band = axes.collections[0].get_paths()[0].vertices
    assert [band[:, 1].min(), band[:, 1].max()] == pytest.approx([60 - std, 80])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.2", "0.8"]


def test_gaps_over_missing_rates_are_points_above_the_best_other() -> None:
    rates = {
        0.2: {"mfcpl": [0.8, 0.9], "fedavg": [0.7, 0.6]},
        0.8: {"mfcpl": [0.5, 0.7], "fedavg": [0.6, 0.6]},
    }
    figure = plots.gap_over_missing(over_missing(rates))
    (axes,) = figure.axes
    _, first, second = axes.lines
    assert first.get_ydata() == pytest.approx([20, 0])
    assert second.get_ydata() == pytest.approx([-20, 0])
    plots.png(figure)
    alone = {rate: {"mfcpl": [0.5], "mfcpl,cmpr=0": [0.6]} for rate in rates}
    assert plots.gap_over_missing(over_missing(alone)) is None
