"""Checkpoints: safetensors and JSON, complete or absent whatever moment the process dies."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmfl_fast.federation.algorithm import State
from mmfl_fast.federation.durable import sync
from mmfl_fast.federation.parameter_table import ParameterTable

AnyState = TypeVar("AnyState", bound=State)
_KEPT = 2
_NAME = re.compile(r"round-(\d{6,})")
_PIECE = 2**20


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which and what to do."""


def state_tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of a state by its path, ``"shared/f.0.weight"``."""
    tensors: dict[str, Tensor] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
            continue
        if not isinstance(value, (dict, ParameterTable)):
            raise TypeError(
                f"{type(state).__name__}.{field.name}: a state holds tensors, mappings of tensors and "
                f"ParameterTables; got {type(value).__name__}"
            )
        nested = value.tensors() if isinstance(value, ParameterTable) else value
        tensors.update({f"{field.name}/{name}": tensor for name, tensor in nested.items()})
    return tensors


def with_state_tensors(template: AnyState, tensors: Mapping[str, Tensor]) -> AnyState:
    """Return a state of the template's kind and layout with other values."""
    changes: dict[str, Any] = {}
    for field in fields(template):
        value = getattr(template, field.name)
        prefix = f"{field.name}/"
        nested = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if isinstance(value, Tensor):
            changes[field.name] = tensors[field.name]
        elif isinstance(value, ParameterTable):
            changes[field.name] = value.with_tensors(nested)
        else:
            # The order of names decides the order of sums: a file sorts them, the template has the run's.
            order = [n for n in value if n in nested] + [n for n in nested if n not in value]
            changes[field.name] = {n: nested[n] for n in order}
    return replace(template, **changes)


def to_device(state: AnyState, device: torch.device) -> AnyState:
    """Return the state with its tables and floating-point tensors on a device; the rest stays on the CPU."""
    if device.type == "cpu":
        return state

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device) if tensor.is_floating_point() else tensor

    changes: dict[str, Any] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, ParameterTable):
            changes[field.name] = value.to(device)
        elif isinstance(value, Tensor):
            changes[field.name] = moved(value)
        else:
            changes[field.name] = {name: moved(tensor) for name, tensor in value.items()}
    return replace(state, **changes)


def write_checkpoint(folder: Path, rounds_done: int, state: State, meta: Mapping[str, Any]) -> Path:
    """Write the state after ``rounds_done`` rounds; older checkpoints but the last go.

    Raises:
        CheckpointError: the disk is full or not writable. Earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"round-{rounds_done:06d}"
    partial = folder / f".partial-{rounds_done:06d}"
    try:
        for table in tables(state):
            table.before_checkpoint()
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(_each_on_its_own(state_tensors(state)), partial / "state.safetensors")
        told = {"rounds_done": rounds_done, "crc32": _checksum(partial / "state.safetensors"), **meta}
        (partial / "meta.json").write_text(json.dumps(told, indent=1))
        for path in [*partial.iterdir(), partial]:
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = _complete(folder)
        where = f"the last complete one is {kept[-1]}" if kept else "there is no earlier one"
        raise CheckpointError(f"checkpoint {final} could not be written ({error}); {where}") from error
    note_checkpoint(state)
    keep_newest(folder, _KEPT)
    return final


def note_checkpoint(state: State) -> None:
    """Let the tables of a state keep what the checkpoint just written, by whomever, refers to."""
    for table in tables(state):
        table.after_checkpoint()


def keep_newest(folder: Path, count: int) -> None:
    """Delete all checkpoints but the newest ones."""
    for old in _complete(folder)[:-count]:
        shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(folder: Path, template: AnyState) -> tuple[AnyState, dict[str, Any]] | None:
    """Return the newest state, on the CPU, and its meta data; None if there is no checkpoint.

    Raises:
        CheckpointError: the newest one is damaged; the message names it and the one before it.
    """
    complete = _complete(folder)
    if not complete:
        return None
    newest = complete[-1]
    try:
        # In a file tensors lie at any address, and on that the rounding of a product can depend.
        tensors = {n: t.clone() for n, t in load_file(newest / "state.safetensors").items()}
        meta = _meta(newest)
        return with_state_tensors(template, tensors), meta
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        before = f"; delete it to go on from {complete[-2]}" if len(complete) > 1 else ""
        raise CheckpointError(f"checkpoint {newest} cannot be read ({error!r}){before}") from error


def _meta(checkpoint: Path) -> dict[str, Any]:
    """What ``meta.json`` says, once it fits the files beside it."""
    meta = json.loads((checkpoint / "meta.json").read_text())
    if not isinstance(meta, dict) or meta.get("rounds_done") != _rounds(checkpoint):
        raise ValueError("meta.json tells other rounds than the folder's name")
    # Checkpoints of earlier versions have none.
    checksum = meta.pop("crc32", None)
    if checksum is not None and checksum != _checksum(checkpoint / "state.safetensors"):
        raise ValueError("state.safetensors is not what was written")
    return meta


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _each_on_its_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU of which no two share memory, nor any has more than it fills.

    safetensors refuses others. What a table has just stacked, which may be most of the memory, is not copied.
    """
    own: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        packed = tensor.detach().cpu().contiguous()
        storage = packed.untyped_storage()
        shared = storage.nbytes() != packed.nbytes or storage.data_ptr() in taken
        own[name] = packed.clone() if shared else packed
        taken.add(storage.data_ptr())
    return own


def tables(state: State) -> list[ParameterTable]:
    """The tables of a state."""
    values = (getattr(state, field.name) for field in fields(state))
    return [value for value in values if isinstance(value, ParameterTable)]


def _complete(folder: Path) -> list[Path]:
    """The checkpoints by rounds; a copy that somebody made under another name is none."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_rounds)


def _rounds(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("round-"))
