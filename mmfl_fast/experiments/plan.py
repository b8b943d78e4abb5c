"""What a comparison consists of: settings x methods x seeds, and where each cell has its folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from mmfl_fast import algorithms
from mmfl_fast.experiments.presets import Experiment, load_experiment, yaml_value
from mmfl_fast.federation.run_directory import write_atomically

_FILE = "comparison.yaml"
# Each has a place of its own on the command line.
_NO_AXES = ("algorithm", "seed")


class PlanError(ValueError):
    """The file that says what a comparison consists of is missing or damaged; the message names it."""


@dataclass(frozen=True)
class Method:
    """An algorithm with options of its own, one row of a table.

    Attributes:
        label: as typed, ``"m3fed"`` or ``"m3fed,clustering=none,mixing=none"``.
        algorithm: its name.
        options: what stands behind the name.
    """

    label: str
    algorithm: str
    options: Mapping[str, Any] = field(compare=False)

    @classmethod
    def parse(cls, label: str) -> Method:
        """Read ``NAME`` or ``NAME,KEY=VALUE,...``; values are YAML.

        Raises:
            ValueError: unknown algorithm (with the nearest), or an option that is not ``KEY=VALUE``.
        """
        name, *texts = label.split(",")
        algorithms.get(name)
        options = {}
        for option in texts:
            key, sign, value = option.partition("=")
            if not key or not sign:
                raise ValueError(f"method {label!r}: options are KEY=VALUE, comma-separated; got {option!r}")
            options[key] = yaml_value(value, f"method {label!r}")
        return cls(label, name, options)

    def options_in(self, experiment: Experiment) -> dict[str, Any]:
        """Options of a run: the experiment's, then its own."""
        return {**experiment.options_of(self.algorithm), **self.options}


@dataclass(frozen=True)
class Axis:
    """A key that takes several values, each in settings of its own.

    Attributes:
        key: as for ``--set``: ``"data.alpha"``, ``"lambda"``.
        values: plain data, in order.
    """

    key: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read ``KEY=V1,V2,...``; values are YAML.

        Raises:
            ValueError: it is something else, a value comes twice, or the key is the algorithm or the seed.
        """
        key, sign, values = text.partition("=")
        if not key or not sign or not values:
            raise ValueError(f"--over takes KEY=V1,V2,...; got {text!r}")
        return cls(key, tuple(yaml_value(f"[{values}]", f"--over {key}")))

    def __post_init__(self) -> None:
        if self.key in _NO_AXES:
            raise ValueError(f"--over {self.key}: methods are arguments, and --seeds tells how many seeds")
        for value in self.values:
            if not isinstance(value, (str, int, float, NoneType)):
                raise ValueError(f"--over {self.key}: values are numbers, words or null; got {value!r}")
        texts = [_text(value) for value in self.values]
        if len(set(texts)) < len(texts):
            raise ValueError(f"--over {self.key}: each value may come once; got {', '.join(texts)}")


class Setting(NamedTuple):
    """One value per axis; no value at all if there is no axis."""

    values: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """``"data.alpha=0.4, lambda=0.3"``."""
        return ", ".join(self.changes)

    @property
    def changes(self) -> list[str]:
        """The setting as changes of an experiment."""
        return [f"{key}={_text(value)}" for key, value in self.values]


class Cell(NamedTuple):
    """One run of a comparison."""

    setting: Setting
    method: Method
    seed: int


@dataclass(frozen=True)
class Plan:
    """All that a comparison consists of.

    Attributes:
        preset: name of a preset or path of a YAML file.
        changes: ``key=value``, in all settings.
        methods: rows of the tables, in order.
        seeds: each gives every method the same partition, initialisation and batches.
        axes: keys with several values; the settings are all combinations.
        unequal: labels of methods that may differ in effort and model.
        command: what a person typed, if so.

    Raises:
        ValueError: a method or an axis is named twice, or ``unequal`` names no method.
    """

    preset: str
    changes: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    axes: tuple[Axis, ...] = ()
    unequal: tuple[str, ...] = ()
    command: str | None = None

    def __post_init__(self) -> None:
        labels = [m.label for m in self.methods]
        if len(set(labels)) < len(labels):
            raise ValueError(f"methods: each may be named once; got {', '.join(labels)}")
        keys = [axis.key for axis in self.axes]
        if len(set(keys)) < len(keys):
            raise ValueError(f"--over: each key may come once; got {', '.join(keys)}")
        for label in self.unequal:
            if label not in labels:
                raise ValueError(f"--allow-unequal {label}: not among the methods {', '.join(labels)}")

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """All combinations of the axes' values; the last axis changes first."""
        pairs = [[(axis.key, value) for value in axis.values] for axis in self.axes]
        return tuple(Setting(values) for values in itertools.product(*pairs))

    @property
    def cells(self) -> Iterator[Cell]:
        """All runs; every method and setting has its first seed before any has its second."""
        for seed in self.seeds:
            for setting in self.settings:
                for method in self.methods:
                    yield Cell(setting, method, seed)

    def experiment(self, setting: Setting) -> Experiment:
        """Read the experiment and apply the changes of all settings and of this one.

        Raises:
            ValueError: a key is unknown, or known to none of the methods; names the nearest.
            FileNotFoundError: there is no such YAML file.
        """
        experiment = load_experiment(self.preset, [*self.changes, *setting.changes])
        experiment.refuse_unknown_options(dict.fromkeys(m.algorithm for m in self.methods))
        return experiment

    def write(self, out: Path) -> None:
        """Keep the plan in ``comparison.yaml``."""
        out.mkdir(parents=True, exist_ok=True)
        content = {
            "command": self.command,
            "preset": self.preset,
            "changes": list(self.changes),
            "methods": [m.label for m in self.methods],
            "seeds": list(self.seeds),
            "axes": {axis.key: list(axis.values) for axis in self.axes},
            "unequal": list(self.unequal),
        }
        write_atomically(out / _FILE, yaml.safe_dump(content, sort_keys=False))

    @classmethod
    def read(cls, out: Path) -> Plan:
        """Read ``comparison.yaml``.

        Raises:
            PlanError: it is missing or damaged.
        """
        path = out / _FILE
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(
                preset=content["preset"],
                changes=tuple(content["changes"]),
                methods=tuple(map(Method.parse, content["methods"])),
                seeds=tuple(content["seeds"]),
                axes=tuple(Axis(key, tuple(values)) for key, values in content["axes"].items()),
                unequal=tuple(content["unequal"]),
                command=content["command"],
            )
        except FileNotFoundError:
            raise PlanError(f"{path} is missing: the folder of a comparison has one") from None
        except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{path} is damaged: {error!r}") from error


def setting_folder(out: Path, setting: Setting) -> Path:
    """Folder of a setting's cells and report: that of the comparison itself if it has no axis."""
    return out / file_name(",".join(setting.changes)) if setting.values else out


def cell_folder(out: Path, cell: Cell) -> Path:
    """Run directory of a cell."""
    return setting_folder(out, cell.setting) / file_name(cell.method.label) / f"seed-{cell.seed}"


def file_name(label: str) -> str:
    """A name for a file or folder, distinct for distinct labels, also where these hold a slash."""
    return quote(label, safe="=,")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
