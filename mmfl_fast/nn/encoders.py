"""Encoders of one modality, by the kind of its inputs: each returns a feature per step.

They are those of the FedMultimodal benchmark (papers.md 4.5), where ``filters`` is 32 and ``width`` is 128.
Its dropout of 0.1 is left out: a loss is a pure function of parameters and rows here, and masks drawn inside
it would depend on which clients are trained together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from mmfl_fast.nn.convolutions import convolutions, init_convolutions
from mmfl_fast.nn.gru import gru, init_gru
from mmfl_fast.nn.linear import init_linear, linear
from mmfl_fast.nn.two_layer import init_two_layer, two_layer

EncoderKind: TypeAlias = Literal["series", "tokens", "vector", "image"]
"""``series``: ``[T, C]``, motion or audio; ``tokens``: ``[T, D]``, features of words; ``vector``: any shape,
flattened; ``image``: ``[H, W]`` or ``[C, H, W]``."""

_SERIES_LAYERS = 3
_IMAGE_LAYERS = 2


def encoder_kind(shape: Sequence[int]) -> EncoderKind:
    """Kind by the shape of one row: ``[D]`` is a vector, ``[T, C]`` a series, ``[C, H, W]`` an image.

    Raises:
        ValueError: more than three axes.
    """
    if len(shape) > 3:
        raise ValueError(
            f"inputs of shape {list(shape)} have no encoder of their own; choose one of "
            f"{', '.join(get_args(EncoderKind))}"
        )
    kinds: tuple[EncoderKind, ...] = ("vector", "series", "image")
    return kinds[len(shape) - 1]


def encoder_steps(kind: EncoderKind, shape: Sequence[int]) -> int:
    """Steps that an encoder makes of a row: T / 8 of a series, rounded up, T of tokens, otherwise 1."""
    if kind == "series":
        return _halved(shape[0], _SERIES_LAYERS)
    return shape[0] if kind == "tokens" else 1


def init_encoder(
    kind: EncoderKind,
    name: str,
    shape: Sequence[int],
    *,
    filters: int,
    width: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Parameters of :func:`encoder`.

    Args:
        kind: of the encoder.
        name: prefix of the parameters.
        shape: of one row of its inputs.
        filters: of the first convolution; each next one has twice as many.
        width: of the features.
        generator: of the weights.

    Raises:
        ValueError: inputs of ``shape`` are not of this kind.
    """
    if kind in ("series", "tokens") and len(shape) != 2:
        raise ValueError(f"encoder {kind!r} needs inputs [T, C]; got the shape {list(shape)}")
    if kind == "image" and len(shape) not in (2, 3):
        raise ValueError(f"encoder 'image' needs inputs [H, W] or [C, H, W]; got the shape {list(shape)}")
    if kind == "series":
        channels = [shape[1], *(filters * 2**i for i in range(_SERIES_LAYERS))]
        return {
            **init_convolutions(f"{name}.conv", channels, (5,), generator),
            **init_gru(f"{name}.gru", channels[-1], width, generator),
        }
    if kind == "tokens":
        return init_gru(f"{name}.gru", shape[1], width, generator)
    if kind == "vector":
        return init_two_layer(f"{name}.mlp", math.prod(shape), width, width, generator)
    channels = [1 if len(shape) == 2 else shape[0], *(filters * 2**i for i in range(_IMAGE_LAYERS))]
    cells = math.prod(_halved(size, _IMAGE_LAYERS) for size in shape[-2:])
    return {
        **init_convolutions(f"{name}.conv", channels, (3, 3), generator),
        **init_linear(f"{name}.out", channels[-1] * cells, width, generator),
    }


def encoder(kind: EncoderKind, params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Features of every step of one modality.

    A series passes three convolutions of size 5 over time, each halving it, and a GRU; tokens a GRU; a vector
    two layers; an image two convolutions of size 3 by 3, each halving it, and a layer. Vectors and images are
    one step.

    Args:
        kind: as the parameters were made for.
        params: of :func:`init_encoder`.
        name: their prefix.
        x: ``[B, ...]`` of that shape.

    Returns:
        ``[B, steps, width]``, as many steps as :func:`encoder_steps` says.
    """
    if kind == "series":
        x = convolutions(params, f"{name}.conv", _SERIES_LAYERS, x.transpose(1, 2))
        return gru(params, f"{name}.gru", x.transpose(1, 2))
    if kind == "tokens":
        return gru(params, f"{name}.gru", x)
    if kind == "vector":
        return two_layer(params, f"{name}.mlp", x.flatten(1)).unsqueeze(1)
    x = convolutions(params, f"{name}.conv", _IMAGE_LAYERS, x.unsqueeze(1) if x.dim() == 3 else x)
    return linear(params, f"{name}.out", x.flatten(1)).unsqueeze(1)


def _halved(size: int, times: int) -> int:
    return math.ceil(size / (1 << times))
