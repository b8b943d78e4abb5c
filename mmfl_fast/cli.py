"""The command line: ``mmfl-fast run | compare | report | data | bench | doctor``."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Annotated, Optional

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import mmfl_fast
from mmfl_fast import algorithms, data
from mmfl_fast.benches.command import (
    bench_growth,
    bench_ops,
    bench_population,
    bench_rounds,
    bench_server,
    bench_sim,
)
from mmfl_fast.experiments import presets
from mmfl_fast.experiments.compare import CellError, compare
from mmfl_fast.experiments.dry_run import tell_comparison, tell_run
from mmfl_fast.experiments.fairness import UnfairComparisonError
from mmfl_fast.experiments.missing_command import show_missing
from mmfl_fast.experiments.missing_curves import MISSING_RATE, missing_curves
from mmfl_fast.experiments.missing_files import write_missing_tables
from mmfl_fast.experiments.modality_cost import print_costs, round_cost, write_costs
from mmfl_fast.experiments.plan import Axis, Method, Plan
from mmfl_fast.experiments.recorded_comparison import read_comparison
from mmfl_fast.experiments.recorded_run import read_run
from mmfl_fast.experiments.report import write_comparison_report, write_run_report
from mmfl_fast.experiments.run import run
from mmfl_fast.experiments.score_grid import score_grids
from mmfl_fast.experiments.scores import ACCURACY, METRICS, Metric, metric_named, score_table
from mmfl_fast.experiments.table_files import write_grid_tables, write_tables
from mmfl_fast.experiments.table_text import print_table
from mmfl_fast.federation import CheckpointError, DivergedError, RankError, RunDirectoryError, ranks
from mmfl_fast.kernels import extension
from mmfl_fast.kernels.backend import backends

# What a person can put right gets one line; anything else keeps its traceback.
_EXPECTED = (
    ValueError,
    OSError,
    RunDirectoryError,
    CheckpointError,
    DivergedError,
    RankError,
    UnfairComparisonError,
)
# What typer makes of Ctrl-C.
_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Multimodal federated learning experiments. Start with [bold]mmfl-fast run demo[/bold].",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: what there is, whether the files are sound.")
app.add_typer(data_app, name="data")
bench_app = typer.Typer(no_args_is_help=True, help="Measurements, each against the best plain torch.")
app.add_typer(bench_app, name="bench")

Metrics = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this at run time, also on Python 3.10
    typer.Option(
        "--metric",
        metavar="NAME",
        help=f"What the printed tables show; repeatable. Of {', '.join(METRICS)}; default: accuracy. The "
        "files and the report have all of them.",
    ),
]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this at run time, also on Python 3.10
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting; repeatable. `rounds=5`, `seed=1`, `data.alpha=0.4`, `missing.rate=0.8`, "
        "or any option of the engine or the algorithm by its bare name: `lambda=0.3`, `participation=0.5`.",
    ),
]


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only tell what it takes in memory, disk and time, measured on a few clients; refuse what "
        "cannot fit.",
    ),
]


def _out(given: Path | None, kind: str, resume: bool) -> Path:
    """The folder to write to: as given, the newest one to resume, or a new one named after the time."""
    if given is not None:
        return given
    parent = Path("runs") / kind
    # Only one process of several writes, perhaps on another machine.
    if resume and ranks.is_first():
        earlier = sorted(p for p in parent.glob("*") if p.is_dir())
        if not earlier:
            raise ValueError(f"--resume: there is no run under {parent}; name one with --out")
        return earlier[-1]
    return parent / datetime.now().strftime("%Y%m%d-%H%M%S")


def _chosen(experiment: str, settings: list[str] | None) -> presets.Experiment:
    """The experiment with its changes, whose options its algorithm knows."""
    chosen = presets.load_experiment(experiment, settings or [])
    chosen.refuse_unknown_options([chosen.algorithm])
    return chosen


@app.command("run")
def run_command(
    experiment: Annotated[
        str, typer.Argument(help=f"A preset ({', '.join(presets.preset_names())}) or a path ending in .yaml")
    ],
    metric: Metrics = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after a kill, to the same bits.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory. Default: runs/<preset>/<time>; with --resume the newest."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run one experiment and write its report.

    Examples:
      mmfl-fast run demo

      mmfl-fast run demo --set algorithm=fedavg --set rounds=10

      mmfl-fast run m3fed-five --set data.samples_per_client=128 --out runs/five

      mmfl-fast run m3fed-five --resume --out runs/five

      mmfl-fast run m3fed-five --set data.scale=10 --dry-run

      torchrun --nproc-per-node 4 -m mmfl_fast run m3fed-five --out runs/five
    """
    metrics = _metrics(metric)
    if dry_run:
        if ranks.is_first():
            tell_run(_chosen(experiment, settings), _out(out, Path(experiment).stem, resume))
        return

    def prepared() -> tuple[presets.Experiment, data.Federation, Path]:
        chosen = _chosen(experiment, settings)
        return chosen, chosen.federation(chosen.seed), _out(out, Path(experiment).stem, resume)

    with ranks.joined() as together:
        chosen, federation, folder = together.everywhere(prepared)
        run(
            federation,
            chosen.algorithm,
            rounds=chosen.rounds,
            seed=chosen.seed,
            out=folder,
            config=chosen.options_of(chosen.algorithm),
            resume=resume,
            described={**chosen.described(), "command": _command()},
        )
    if not together.first:
        return
    measured = read_run(folder).measured
    if measured is not None:
        for each in metrics:
            print_table(score_table({chosen.algorithm: {chosen.seed: measured}}, each))
    _tell(f"report: {write_run_report(folder)}")


@app.command("compare")
def compare_command(
    methods: Annotated[
        list[str],
        typer.Argument(
            help=f"Algorithms ({', '.join(algorithms.names())}), each with options of its own if you like: "
            "`m3fed,clustering=none,mixing=none`."
        ),
    ],
    preset: Annotated[
        str, typer.Option(help=f"A preset ({', '.join(presets.preset_names())}) or a path ending in .yaml")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, counted up from the preset's.")] = 3,
    alpha: Annotated[
        str | None,
        typer.Option(metavar="V1,V2,...", help="Label skews, as `--over data.alpha=V1,V2,...`."),
    ] = None,
    data_names: Annotated[
        str | None,
        typer.Option("--data", metavar="NAME,...", help="Data sets, as `--over data.name=NAME,...`."),
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(
            metavar="Q1 Q2 ...",
            help="Rates of missing modalities, as `--over missing.rate=Q1,Q2,...`, with curves over the "
            "rate. What is missing is the same for every method; every seed draws it anew, unless "
            "`--set missing.seed=0` fixes it.",
        ),
    ] = None,
    over: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time, also on Python 3.10
        typer.Option(
            metavar="KEY=V1,V2,...",
            help="Sweep: everything at every value; repeatable for all combinations, with a heat map whose "
            "columns are the last key's values. Any key of --set, such as `lambda`, `clusters`, "
            "`local_epochs` or `data.scale`, which multiplies the clients.",
        ),
    ] = None,
    allow_unequal: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="METHOD",
            help="Let a method differ in optimiser steps, rows or model; the tables then tell the steps.",
        ),
    ] = None,
    metric: Metrics = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an interrupted comparison.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder. Default: runs/compare-<preset>/<time>; with --resume the newest."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. Default: one per core.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Compare methods over seeds and settings: tables with tests, curves, sweeps and a report.

    Every method gets the same partition, model, start, batches and number of optimiser steps per seed, or the
    comparison is refused.

    Examples:
      mmfl-fast compare local fedavg cross-fedavg m3fed --preset demo --seeds 3

      mmfl-fast compare m3fed m3fed,clustering=none --preset demo --alpha 1,0.4

      mmfl-fast compare m3fed --preset demo --over lambda=0,0.3,0.6 --over clusters=2,4

      mmfl-fast compare fedavg m3fed --preset mine.yaml --missing 0.2 0.4 0.6 0.8 --metric macro_f1
    """
    if ranks.launched():
        raise ValueError(
            "compare has processes of its own (--jobs): start it without torchrun, which is for run"
        )
    metrics = _metrics(metric)
    chosen = presets.load_experiment(preset, settings or [])
    if data_names is not None and "npz" in chosen.data:
        raise ValueError(f"--data {data_names}: {preset} reads {chosen.data['npz']}, and no data set by name")
    dealt = "data" if chosen.dirichlet is None else "dirichlet"
    shorthands = {"data.name": data_names, f"{dealt}.alpha": alpha, MISSING_RATE: missing}
    swept = [f"{key}={values}" for key, values in shorthands.items() if values is not None] + (over or [])
    plan = Plan(
        preset=preset,
        changes=tuple(settings or []),
        methods=tuple(map(Method.parse, methods)),
        seeds=tuple(chosen.seed + i for i in range(seeds)),
        axes=tuple(map(Axis.parse, swept)),
        unequal=tuple(allow_unequal or []),
        command=_command(),
    )
    folder = _out(out, f"compare-{Path(preset).stem}", resume)
    if dry_run:
        tell_comparison(plan, folder, jobs)
        return
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"{folder} is not a folder: a comparison is kept in one")
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise RunDirectoryError(f"{folder} is not empty: finish it with --resume or choose another folder")
    compare(plan, folder, jobs=jobs)
    tables = read_comparison(folder).all_tables
    curves = missing_curves(tables)
    over_rates = [each.table(column) for each in curves if each.metric in metrics for column in each.shown]
    grids = score_grids(tables, plan.axes)
    several = [grid for grid in grids if len(plan.axes) > 1 and grid.metric in metrics]
    over_grid = [table for grid in several for table in grid.panels]
    for table in over_rates or over_grid or [table for table in tables if table.metric in metrics]:
        print_table(table)
    write_tables(tables, folder)
    write_grid_tables(grids, folder)
    write_missing_tables(curves, folder)
    _tell(f"report: {write_comparison_report(folder)}")


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="A run directory or the folder of a comparison.")],
) -> None:
    """Write report.html, also for what is not finished."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    is_run = (folder / "config.yaml").exists()
    written = write_run_report(folder) if is_run else write_comparison_report(folder)
    _tell(f"report: {written}")


@data_app.command("list")
def data_list() -> None:
    """List the data sets that can be loaded by name."""
    table = Table("name", "modality", "licence", "what it is", box=None)
    for entry in data.available():
        table.add_row(entry.name, entry.modality, entry.licence, entry.description)
    Console().print(table)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name from `mmfl-fast data list`.")],
    root: Annotated[Path | None, typer.Option(help="Data root. Default: $MMFL_DATA, else ./data")] = None,
) -> None:
    """Download the files of a data set into the data root."""
    data.fetch(name, root)


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="A name from `mmfl-fast data list`.")],
    root: Annotated[Path | None, typer.Option(help="Data root. Default: $MMFL_DATA, else ./data")] = None,
) -> None:
    """Verify presence, size, checksum and row counts of a data set."""
    findings = data.check(name, root)
    for finding in findings:
        _tell(finding)
    if findings:
        raise typer.Exit(1)
    _tell(f"{name}: all files are there and sound")


@data_app.command("missing")
def data_missing(
    source: Annotated[
        str, typer.Argument(help="A name from `mmfl-fast data list`, a preset, or a path ending in .yaml")
    ],
    rate: Annotated[
        str | None,
        typer.Option(
            help="As `--set missing.rate=...`: a number, `[0.9,0.5,...]` for each client, or by modality or "
            "client, `{acc: 0.9, gyro: 0.2}`."
        ),
    ] = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Picture of clients by modalities.")] = Path("missing.png"),
) -> None:
    """Show which clients are left with which modalities; nothing is trained.

    Examples:
      mmfl-fast data missing hapt --rate 0.8

      mmfl-fast data missing mine.yaml --rate 0.8 --set missing.spread=0.5 --set missing.test_rate=0.2
    """
    changes = [*(settings or []), *([f"missing.rate={rate}"] if rate is not None else [])]
    drawn = show_missing(source, changes, out)
    _tell(f"picture: {out}" if drawn else "nothing is missing: no picture")


bench_app.command("ops")(bench_ops)
bench_app.command("sim")(bench_sim)
bench_app.command("growth")(bench_growth)
bench_app.command("rounds")(bench_rounds)
bench_app.command("server")(bench_server)
bench_app.command("population")(bench_population)


@bench_app.command("modalities")
def bench_modalities(
    methods: Annotated[list[str], typer.Argument(help="Algorithms with options, as for `compare`.")],
    counts: Annotated[str, typer.Option(metavar="M1,M2,...", help="Numbers of modalities.")] = "1,2,3,4,6",
    shape: Annotated[str, typer.Option(help="Of a row in each modality, `32` or `128x3`.")] = "128x3",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count, after one to warm up.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers, too.")
    ] = None,
) -> None:
    """Measure what a round costs a client as the number of modalities grows, on noise.

    Example:
      mmfl-fast bench modalities fedavg m3fed,width=128 --counts 2,3,4,6 --shape 128x3
    """
    parsed = [Method.parse(method) for method in methods]
    numbers, sizes = _sizes("--counts", counts, ","), _sizes("--shape", shape, "x")
    costs = [round_cost(method, m, sizes, rounds) for method in parsed for m in numbers]
    print_costs(costs, sizes)
    if json_file is not None:
        write_costs(costs, json_file)


@app.command("doctor")
def doctor() -> None:
    """Tell what is built, which backends run here, and the versions."""
    console = Console()
    facts = Table(box=None, show_header=False)
    facts.add_row("mmfl_fast", mmfl_fast.__version__)
    facts.add_row("Python", f"{platform.python_version()} on {platform.machine()}")
    for package in ("torch", "numpy", "scikit-learn"):
        facts.add_row(package, metadata.version(package))
    facts.add_row("torch threads", str(torch.get_num_threads()))
    for name, status in backends().items():
        facts.add_row(f"backend {name}", f"{', '.join(status.devices) or 'not here'} ({status.reason})")
    facts.add_row("CUDA part", _cuda_facts())
    console.print(facts, soft_wrap=True, highlight=False)


def _metrics(names: list[str] | None) -> list[Metric]:
    return [metric_named(name) for name in names or [ACCURACY.name]]


def _tell(line: str) -> None:
    """Print a line as it is: brackets in a path are no markup, and nothing breaks it."""
    Console().print(line, soft_wrap=True, highlight=False, markup=False)


def _cuda_facts() -> str:
    if extension.missing:
        return extension.missing
    if not extension._C.built_with_cuda:
        return "not compiled: no nvcc when the extension was built"
    runtime, driver, problem, devices = extension._C.cuda_report()
    version = f"compiled with CUDA {runtime // 1000}.{runtime % 1000 // 10}"
    if problem:
        return f"{version}; no device ({problem})"
    listed = ", ".join(f"{name} (sm_{major}{minor})" for name, major, minor in devices)
    return f"{version}; driver for {driver // 1000}.{driver % 1000 // 10}; {listed}"


def _sizes(option: str, text: str, separator: str) -> list[int]:
    words = text.split(separator)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{option} takes integers >= 1 with {separator!r} between them; got {text!r}")
    return [int(word) for word in words]


def _joined_numbers(words: list[str], option: str) -> list[str]:
    """Turn ``--missing 0.2 0.4``, which no option can take, into ``--missing 0.2,0.4``."""
    joined: list[str] = []
    for word in words:
        if joined[-2:-1] == [option] and _is_number(word):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _command() -> str:
    """What to type to get the same run again."""
    return shlex.join([*ranks.launcher(), *(word for word in sys.argv[1:] if word != "--resume")])


def main() -> None:
    """Run the command line; mistakes of the user end in one line and exit code 2."""
    try:
        app(_joined_numbers(sys.argv[1:], "--missing"))
    except (*_EXPECTED, CellError) as error:
        if isinstance(error, CellError) and not isinstance(error.__cause__, (*_EXPECTED, NoneType)):
            raise
        # Of several processes rank 0 speaks for all, as long as it is there.
        if ranks.is_first() or (isinstance(error, RankError) and 0 in error.lost):
            told = f"[bold red]error:[/bold red] {escape(str(error))}"
            Console(stderr=True).print(told, soft_wrap=True, highlight=False)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            resumable = sys.argv[1:2] in (["run"], ["compare"])
            Console(stderr=True).print(f"interrupted{'; continue with --resume' if resumable else ''}")
        raise


if __name__ == "__main__":
    main()
