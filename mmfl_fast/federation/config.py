"""Options of the engine, and how a flat set of options finds its owners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mmfl_fast.data.arguments import suggestion

Model = TypeVar("Model", bound=BaseModel)


class EngineConfig(BaseModel):
    """Options of the engine, the same for every algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    participation: float = Field(1.0, gt=0, le=1, description="share of the clients drawn each round")
    standardise: bool = Field(True, description="inputs of zero mean and unit scale, per task and modality")
    evaluate_every: int = Field(1, ge=1, description="rounds between evaluations; the last always has one")
    test_alone: bool = Field(
        False,
        description="test with each modality alone, too: further columns `<data set>, <modality> alone`",
    )
    evaluate_clients: int | None = Field(
        None, ge=1, description="test that many clients, the same after every round; default: all"
    )
    checkpoint_every: int = Field(10, ge=1, description="rounds between checkpoints; the last always has one")
    device: str = Field("auto", description="auto, cpu or cuda[:index]")
    chunk: int | None = Field(
        None, ge=1, description="clients per stack; default: one on a CPU, fitted on a GPU"
    )
    memory_gib: float | None = Field(
        None, gt=0, description="budget per stack on a GPU; default: half of what is free"
    )
    client_state: Literal["memory", "disk"] = Field(
        "memory",
        description="where lies what a client keeps, or the server for it; disk: of those not in the round",
    )
    native_steps: Literal["auto", "off"] = Field(
        "auto", description="local training on a CPU: native code where it knows the model; off: torch alone"
    )
    step_graphs: Literal["auto", "off"] = Field(
        "auto", description="local training on a GPU: repeated steps as CUDA graphs; off: launch by launch"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the matrix products in local training; bfloat16 is torch's autocast, parameters and "
        "optimiser stay float32",
    )

    @field_validator("native_steps", "step_graphs", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        # As YAML reads the word.
        return "off" if value is False else value


def option_names(model: type[BaseModel]) -> list[str]:
    """Names a user may give: each field's alias where it has one."""
    return [field.alias or name for name, field in model.model_fields.items()]


def refuse_unknown(given: Mapping[str, Any], known: list[str], what: str) -> None:
    """Raise for the first key that is not known.

    Raises:
        ValueError: names the key, the nearest valid name and all of them.
    """
    for key in given:
        if key not in known:
            raise ValueError(f"unknown {what} {key!r}{suggestion(str(key), sorted(known))}")


def split_options(options: Mapping[str, Any], first: type[Model], second: type[BaseModel]) -> tuple[Any, Any]:
    """Build two option models from one flat mapping.

    Args:
        options: names and values of both.
        first: e.g. ``EngineConfig``.
        second: an algorithm's ``Config``; its names are disjoint from the first's.

    Raises:
        ValueError: unknown name (with the nearest valid one) or a value that does not fit.
    """
    refuse_unknown(options, option_names(first) + option_names(second), "config key")
    mine = set(option_names(first))
    return (
        validated(first, {k: v for k, v in options.items() if k in mine}),
        validated(second, {k: v for k, v in options.items() if k not in mine}),
    )


def validated(model: type[Model], options: Mapping[str, Any]) -> Model:
    """Build an option model; errors name the option, what it must be and what came."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        # A rule about several options has no place of its own and says itself what came.
        problems = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}; got {e['input']!r}" if e["loc"] else e["msg"]
            for e in error.errors()
        ]
        raise ValueError("; ".join(problems)) from None
