"""Experiments as YAML: presets of the package and files of the user."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from mmfl_fast import algorithms, data
from mmfl_fast.data import Federation
from mmfl_fast.data.arguments import require_integer, suggestion
from mmfl_fast.data.pairs.model_folder import MissingLibraryError
from mmfl_fast.federation import EngineConfig
from mmfl_fast.federation.config import option_names, refuse_unknown, validated

_DATA_SECTIONS = ("data", "validation", "dirichlet", "shards", "missing", "completion")


class Experiment(BaseModel):
    """What one YAML file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field("", description="one line for people")
    algorithm: str = Field("m3fed", description="what `mmfl-fast run` runs")
    rounds: int = Field(50, ge=1, description="communication rounds")
    seed: int = Field(0, ge=0, description="fixes everything, the partition of the data included")
    data: dict[str, Any] = Field(
        description="`name` of a data set and its options, or `npz` with the path of a file or "
        "of its unpacked folder"
    )
    validation: dict[str, Any] | None = Field(
        None,
        description="options of mf.data.validation_part, by which training rows test in place of the test "
        "rows: for choosing options; it comes before `dirichlet` and `shards`",
    )
    dirichlet: dict[str, Any] | None = Field(None, description="options of mf.data.dirichlet")
    shards: dict[str, Any] | None = Field(None, description="options of mf.data.shards")
    missing: dict[str, Any] | None = Field(None, description="options of mf.data.with_missing")
    completion: dict[str, Any] | None = Field(
        None,
        description="options of mf.data.complete, which fills in what `missing` took away, and of its "
        "generator; `server_items` makes so many with mf.data.with_server_items; `methods` lists the "
        "algorithms that train on what is filled in, by default all",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="options of the engine and the algorithms"
    )
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of one algorithm alone, by its name"
    )

    def options_of(self, method: str) -> dict[str, Any]:
        """Options for one algorithm: the common ones that it knows, and its own."""
        known = option_names(EngineConfig) + option_names(algorithms.get(method).Config)
        common = {k: v for k, v in self.config.items() if k in known}
        return {**common, **self.methods.get(method, {})}

    def refuse_unknown_options(self, methods: Iterable[str]) -> None:
        """Raise for an option that no algorithm in ``methods`` knows.

        Raises:
            ValueError: names the key and the nearest valid name.
        """
        names = option_names(EngineConfig)
        for method in methods:
            names += [n for n in option_names(algorithms.get(method).Config) if n not in names]
        refuse_unknown(self.config, names, "config key")
        refuse_unknown(self.methods, list(algorithms.names()), "algorithm in methods")
        for method, options in self.methods.items():
            own = option_names(EngineConfig) + option_names(algorithms.get(method).Config)
            refuse_unknown(options, own, f"config key of {method}")

    def completes(self, method: str) -> bool:
        """Whether an algorithm trains on what `completion` fills in.

        Raises:
            ValueError: ``methods`` of the section names no algorithm.
        """
        if self.completion is None:
            return False
        listed = self.completion.get("methods")
        if listed is None:
            return True
        if not isinstance(listed, list):
            raise ValueError(f"completion.methods must be a list of algorithms; got {listed!r}")
        refuse_unknown(dict.fromkeys(listed), list(algorithms.names()), "algorithm in completion.methods")
        return method in listed

    def federation(self, seed: int, method: str | None = None) -> Federation:
        """Load the data; whatever is drawn for it is drawn from ``seed`` unless the YAML fixes one.

        So in a comparison all methods of one seed get the same partition and the same missing modalities.
        Another seed draws both anew; ``missing: {seed: 0}`` keeps the modalities that a client loses, as
        far as the clients are the same.

        Args:
            seed: integer >= 0.
            method: algorithm that is to train on it, which may fill in what is missing or not; by default
                that of the experiment.

        Raises:
            ValueError: an option is unknown (names the nearest) or absent, or its value does not fit.
            FileNotFoundError: a file of the data set or a pretrained model is not there; says how to get it.
        """
        try:
            whole = self._partitioned(seed)
            federation = whole
            if self.missing is not None:
                options = {"seed": seed, **self.missing}
                federation = _applied(data.with_missing, federation, options, "missing")
            if self.completion is not None and self.completes(method or self.algorithm):

                def completed(
                    fed: Federation,
                    backend: str = "feature",
                    noise: float = 1.0,
                    seed: int = 0,
                    text_to_image: str | None = None,
                    captioner: str | None = None,
                    steps: int | None = None,
                    guidance: float | None = None,
                    answer_tokens: int = 24,
                    batch_size: int = 8,
                    dtype: str = "float32",
                    server_items: int = 0,
                ) -> Federation:
                    truth = whole if backend == "oracle" else None
                    items = require_integer("server_items", server_items, minimum=0)
                    models = None
                    if backend == "generator" or items:
                        models = data.PairGenerator(
                            text_to_image, captioner, steps, guidance, answer_tokens, batch_size, dtype
                        )
                    fed = data.complete(
                        fed, backend, original=truth, generator=models, noise=noise, seed=seed
                    )
                    return data.with_server_items(fed, models, items, seed) if models and items else fed

                options = {"seed": seed, **{k: v for k, v in self.completion.items() if k != "methods"}}
                federation = _applied(completed, federation, options, "completion")
        except (TypeError, MissingLibraryError) as error:
            # Whoever reads this wrote YAML: to them a wrong type, or a model that needs more than is
            # installed, is a wrong value.
            raise ValueError(str(error)) from error
        return federation

    def before_completion(self) -> Experiment:
        """The same experiment, in which nobody fills in what is missing."""
        return self.model_copy(update={"completion": None})

    def _partitioned(self, seed: int) -> Federation:
        federation = self._loaded(seed)
        if self.validation is not None:
            options = {"seed": seed, **self.validation}
            federation = _applied(data.validation_part, federation, options, "validation")
        if self.dirichlet is not None and self.shards is not None:
            raise ValueError("dirichlet and shards both deal all rows to new clients; give one of them")
        if self.dirichlet is not None:
            federation = _applied(data.dirichlet, federation, {"seed": seed, **self.dirichlet}, "dirichlet")
        if self.shards is not None:
            federation = _applied(data.shards, federation, {"seed": seed, **self.shards}, "shards")
        return federation

    def _loaded(self, seed: int) -> Federation:
        options = dict(self.data)
        if "npz" in options:
            refuse_unknown(options, ["npz", "name", "num_classes", "seed"], "key of data")
            if options.get("name") in [entry.name for entry in data.available()]:
                raise ValueError(
                    f"data: {options['name']!r} is a data set, but the rows come from npz "
                    f"{options['npz']!r}; give one of them, or the file another name"
                )
            return data.load_npz(options.pop("npz"), **{"seed": seed, **options})
        name = options.pop("name", None)
        if name is None:
            raise ValueError(f"data: needs `name` or `npz`; got the keys {sorted(options)}")
        return data.load(name, **{"seed": seed, **options})

    def described(self) -> dict[str, Any]:
        """Where the data came from, for a run's ``config.yaml``."""
        return {name: getattr(self, name) for name in _DATA_SECTIONS}


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("mmfl_fast") / "presets"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_experiment(source: str, changes: Iterable[str] = ()) -> Experiment:
    """Read a preset or a YAML file and apply ``key=value`` changes.

    Args:
        source: name of a preset, or path of a ``.yaml`` file.
        changes: ``rounds=3``, ``data.alpha=0.4``, or a bare option of the engine or algorithm like
            ``lambda=0.3``, which also replaces what the file says for one method. Values are YAML.

    Raises:
        ValueError: no such preset (with the nearest name), not YAML, an unknown key, or a value that does
            not fit.
        FileNotFoundError: the path does not exist.
    """
    return _changed(_mapping(yaml_text(source), source), changes, source)


def experiment_on(name: str, changes: Iterable[str] = ()) -> Experiment:
    """An experiment on a data set by name, with the defaults and ``key=value`` changes of a preset.

    Raises:
        ValueError: as for :func:`load_experiment`; whether there is such a data set is told on loading.
    """
    return _changed({"data": {"name": name}}, changes, name)


def yaml_text(source: str) -> str:
    """Text of a preset or of a YAML file."""
    if source.endswith((".yaml", ".yml")):
        try:
            return Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not valid YAML: {error}") from None
    known = preset_names()
    if source not in known:
        raise ValueError(f"unknown preset {source!r}{suggestion(source, known)}, or a path ending in .yaml")
    return (resources.files("mmfl_fast") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")


def yaml_value(text: str, where: str) -> Any:
    """The value that a person typed.

    Raises:
        ValueError: it is not YAML; ``where`` begins the message.
    """
    try:
        return _yaml(text)
    except yaml.YAMLError:
        raise ValueError(f"{where}: {text!r} is not a YAML value") from None


def _changed(content: dict[str, Any], changes: Iterable[str], source: str) -> Experiment:
    changes = list(changes)
    _give_way(content, {change.partition("=")[0] for change in changes})
    for change in changes:
        _apply(content, change)
    refuse_unknown(content, option_names(Experiment), f"key in {source}")
    return validated(Experiment, content)


def _applied(
    function: Callable[..., Federation], federation: Federation, options: dict[str, Any], section: str
) -> Federation:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    refuse_unknown(options, [p.name for p in parameters], f"key of {section}")
    for p in parameters:
        if p.default is p.empty and p.name not in options:
            raise ValueError(f"{section}: needs {p.name!r}; got the keys {sorted(options)}")
    return function(federation, **options)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``1e-3`` for a word, because it has no point; here it is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        content = _yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} must hold keys and values; got {type(content).__name__}")
    return dict(content)


def _give_way(content: dict[str, Any], keys: set[str]) -> None:
    """Take the keys that a person gives for all methods out of what the file says for one."""
    methods = content.get("methods")
    if not isinstance(methods, Mapping):
        return
    content["methods"] = {
        name: {k: v for k, v in own.items() if k not in keys} if isinstance(own, Mapping) else own
        for name, own in methods.items()
    }


def _apply(content: dict[str, Any], change: str) -> None:
    key, sign, text = change.partition("=")
    if not sign or not key:
        raise ValueError(f"--set takes key=value; got {change!r}")
    value = yaml_value(text, f"--set {key}")
    top, _, rest = key.partition(".")
    if rest:
        sections = (*_DATA_SECTIONS, "config", "methods")
        if top not in sections:
            raise ValueError(f"--set {key}: sections are {', '.join(sections)}; got {top!r}")
    elif top in option_names(Experiment):
        content[top] = value
        return
    path = key.split(".") if rest else ["config", key]
    place = content
    for step in path[:-1]:
        inner = place.get(step)
        if not isinstance(inner, Mapping | None):
            raise ValueError(f"--set {key}: {step} is {inner!r}, which has no keys inside")
        place[step] = dict(inner or {})
        place = place[step]
    place[path[-1]] = value
