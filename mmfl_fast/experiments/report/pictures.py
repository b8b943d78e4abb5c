"""The pictures of one run, and of several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmfl_fast.experiments import plots
from mmfl_fast.experiments.recorded_run import RecordedRun, ReportError
from mmfl_fast.experiments.report.page import Picture, picture
from mmfl_fast.experiments.scores import SCORES

# Method -> seed -> run.
Runs = Mapping[str, Mapping[int, RecordedRun]]


def shared_pictures(runs: Runs) -> Iterator[Picture]:
    """Scores, loss and what the algorithms tell of themselves by round, and the clients' scores.

    All methods are in each picture.
    """
    histories = {m: {s: r.history for s, r in by_seed.items()} for m, by_seed in runs.items()}
    several = max(len(seeds) for seeds in histories.values()) > 1
    band = " Lines are means over seeds, bands ± one sample standard deviation." if several else ""
    for metric in SCORES:
        yield from picture(
            metric.name.replace("_", "-"),
            f"{metric.title.removesuffix(' in %')} by round",
            metric.meaning + band,
            plots.score_by_round(histories, metric),
        )
    yield from picture(
        "train-loss",
        "Training loss by round",
        "Mean over the clients of the round." + band,
        plots.train_loss_by_round(histories),
    )
    yield from _client_accuracy_picture(runs)
    yield from picture(
        "agreement",
        "Agreement of clusters and modalities",
        "Adjusted Rand index of the clusters that the server found and the modalities that it does not know: "
        "1 if they are the same partition, 0 on average by chance. Only methods that form clusters have it."
        + band,
        plots.agreement_by_round(histories),
    )
    measures = dict.fromkeys(n for by_seed in runs.values() for run in by_seed.values() for n in run.measures)
    yield from picture(
        "measures",
        "What the algorithms measure of themselves",
        "By round; a method is drawn in the panels of what it measures." + band,
        plots.measures_by_round(histories, list(measures)),
    )


def presence_picture(run: RecordedRun) -> Iterator[Picture]:
    """Which modalities the clients of a run are left with, if any are missing."""
    options = run.config.get("missing") or {}
    drawn = "missing.seed, so all seeds have the same" if "seed" in options else "the run's seed"
    told = f" It is drawn from {drawn}; all methods have the same." if options else ""
    parts = {f"{title} rows": run.presence(part) for part, title in (("train", "training"), ("test", "test"))}
    yield from picture(
        "presence",
        "Which client has which modality",
        f"Seed {run.config['seed']}.{told} Grey: no modality of the client's data set, or no such rows. "
        "Training or test rows are not shown if nothing is missing from them.",
        plots.presence_map(parts, run.names),
    )


def state_pictures(run: RecordedRun, prefix: str = "", of: str = "") -> Iterator[Picture]:
    """What the server of one run knows of its clients."""
    names, groups = run.names, run.groups
    clusters = run.state["clusters"].tolist() if "clusters" in run.state else None
    after = f"After round {run.state_round}."
    sorted_by = " Clients are sorted by cluster; lines are cluster boundaries." if clusters else ""
    try:
        if "affinity" in run.state:
            yield from picture(
                f"{prefix}similarity",
                f"{of}Similarity of the clients' updates",
                f"{after}{sorted_by} The strip shows what the server does not know: data set "
                "and modality. The diagonal is 1.",
                plots.similarity_map(run.state["affinity"], names, groups, clusters),
            )
        if "consensus" in run.state:
            yield from picture(
                f"{prefix}consensus",
                f"{of}Consensus matrix",
                f"{after}{sorted_by} A row holds the weights of that client's mix.",
                plots.consensus_map(run.state["consensus"], names, groups, clusters),
            )
    except ValueError as error:
        raise ReportError(f"{run.path / 'checkpoints'} does not fit clients.json: {error}") from error
    yield from picture(
        f"{prefix}clusters",
        f"{of}Clusters by round",
        "Numbers follow the order of the clients within a round; the same number in two rounds need not "
        "be the same cluster.",
        plots.clusters_by_round(run.history, names, groups),
    )


def _client_accuracy_picture(runs: Runs) -> Iterator[Picture]:
    every = [run for by_seed in runs.values() for run in by_seed.values()]
    scores = {
        method: {seed: run.result["per_client"] for seed, run in by_seed.items() if run.result is not None}
        for method, by_seed in runs.items()
    }
    each = "One dot per client" if len(every) == len(runs) else "One dot per client and seed"
    yield from picture(
        "clients",
        "Accuracy of every client",
        f"{each}; the bar is the mean of the dots. Clients without test rows have none.",
        plots.accuracy_by_client(scores, every[0].datasets),
    )
