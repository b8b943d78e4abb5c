"""One way to make a primitive a torch op: schema, shape rule, gradient, batching rule."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmfl_fast.kernels.autocast import without_autocast
from mmfl_fast.kernels.backend import gpu_kernels
from mmfl_fast.kernels.direct_call import plain_tensors, records_gradient

_library = torch.library.Library("mmfl_fast", "DEF")


@dataclass(frozen=True)
class Primitive:
    """What torch has to know of one primitive.

    Attributes:
        name: of the op, ``torch.ops.mmfl_fast.<name>``.
        signature: schema behind the name, ``"(Tensor x, int n) -> Tensor"``. A list of tensors may be an
            argument; outputs are tensors, or one list of tensors.
        fake: outputs without data, from the arguments; gives shapes and dtypes.
        setup_context: ``(ctx, arguments, output)``, saves what ``backward`` needs.
        backward: ``(ctx, *output_gradients)``, one gradient per argument: a list for a list, None where
            there is none. :func:`needs_gradient` tells which are wanted.
        vmap: ``(info, in_dims, *arguments)``, the batching rule of ``torch.library.register_vmap``.
    """

    name: str
    signature: str
    fake: Callable[..., Any]
    setup_context: Callable[[Any, tuple[Any, ...], Any], None]
    backward: Callable[..., tuple[Any, ...]]
    vmap: Callable[..., tuple[Any, Any]]


def _nest(flat: Sequence[Any], lengths: Sequence[int]) -> tuple[Any, ...]:
    """Arguments from their flat form; a length of -1 is a plain argument, any other one a list."""
    arguments: list[Any] = []
    position = 0
    for length in lengths:
        if length < 0:
            arguments.append(flat[position])
            position += 1
        else:
            arguments.append(list(flat[position : position + length]))
            position += length
    return tuple(arguments)


def _flatten(arguments: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    flat: list[Any] = []
    for argument, length in zip(arguments, lengths, strict=True):
        if length < 0:
            flat.append(argument)
        else:
            flat.extend([None] * length if argument is None else argument)
    return flat


def needs_gradient(ctx: Any) -> tuple[Any, ...]:
    """Which arguments of a primitive need a gradient, in its ``backward``: a list of bools for a list."""
    if not hasattr(ctx, "lengths"):
        return tuple(ctx.needs_input_grad)
    flat = ctx.needs_input_grad[1:]
    if torch.compiler.is_compiling():
        # The flags are wrong while torch.compile traces torch.func.grad; it drops what nobody uses anyway.
        flat = [True] * len(flat)
    return _nest(flat, ctx.lengths)


def _any_requires_grad(flat: Sequence[Any]) -> bool:
    return any(isinstance(argument, torch.Tensor) and argument.requires_grad for argument in flat)


def sample(argument: Any, dim: Any, index: int) -> Any:
    """One sample of a batched argument of a vmap rule; lists go with lists of dimensions."""
    if isinstance(argument, (list, tuple)):
        dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(argument)
        return [sample(item, d, index) for item, d in zip(argument, dims, strict=True)]
    return argument if dim is None else argument.select(dim, index)


def _on_gpu(name: str, cuda: Callable[..., Any]) -> Callable[..., Any]:
    """Implementation for CUDA tensors: the extension's, or the function of that name in ``triton.py``."""
    package = name.removesuffix("_backward")

    def run(*arguments: Any) -> Any:
        first = arguments[0]
        device = (first if isinstance(first, torch.Tensor) else first[0]).device
        if gpu_kernels(package, device) == "native":
            return cuda(*arguments)
        # Imported when it is needed: Triton is neither small nor everywhere.
        module = importlib.import_module(f"mmfl_fast.kernels.{package}.triton")
        return getattr(module, name)(*arguments)

    return run


def register(primitive: Primitive, cpu: Callable[..., Any], cuda: Callable[..., Any]) -> Callable[..., Any]:
    """Register a primitive with torch and return the function to call.

    The op itself carries a gradient and a batching rule, for ``opcheck``, export and direct calls. The
    returned function wraps it in an ``autograd.Function``, because ``torch.func`` transforms nest only
    through one that has ``setup_context`` and ``vmap``.

    Args:
        primitive: the description.
        cpu: implementation for CPU tensors.
        cuda: implementation for CUDA tensors in the extension. The one in Triton is the function of the op's
            name in ``mmfl_fast/kernels/<primitive>/triton.py``.
    """
    qualified = f"mmfl_fast::{primitive.name}"
    _library.define(primitive.name + primitive.signature)
    _library.impl(primitive.name, cpu, "CPU")
    _library.impl(primitive.name, _on_gpu(primitive.name, cuda), "CUDA")
    torch.library.register_fake(qualified, primitive.fake, lib=_library)
    backward = without_autocast(primitive.backward)
    torch.library.register_autograd(qualified, backward, setup_context=primitive.setup_context, lib=_library)
    torch.library.register_vmap(qualified, primitive.vmap, lib=_library)
    op = getattr(torch.ops.mmfl_fast, primitive.name)
    returns_list = primitive.signature.endswith("Tensor[]")
    # Plain functions in the closure: torch.compile cannot trace through the dataclass.
    setup_context_rule, backward_rule, vmap_rule = primitive.setup_context, backward, primitive.vmap

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(lengths: tuple[int, ...], *flat: Any) -> Any:
            arguments = _nest(flat, lengths)
            output = cpu(*arguments) if plain_tensors(arguments) else op(*arguments)
            return tuple(output) if returns_list else output

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            lengths, *flat = inputs
            ctx.lengths = lengths
            setup_context_rule(ctx, _nest(flat, lengths), output)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            arguments = (list(gradients),) if returns_list else gradients
            return (None, *_flatten(backward_rule(ctx, *arguments), ctx.lengths))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], lengths: tuple[int, ...], *flat: Any) -> Any:
            output, out_dims = vmap_rule(info, _nest(in_dims[1:], lengths), *_nest(flat, lengths))
            return (tuple(output), tuple(out_dims)) if returns_list else (output, out_dims)

    Differentiable.__name__ = Differentiable.__qualname__ = primitive.name

    def call(*arguments: Any) -> Any:
        tensors = plain_tensors(arguments)
        if tensors and not records_gradient(tensors):
            return cpu(*arguments)
        if not (tensors or torch._C._are_functorch_transforms_active()):
            return op(*arguments)
        lengths = tuple(len(a) if isinstance(a, (list, tuple)) else -1 for a in arguments)
        flat = _flatten(arguments, lengths)
        # torch.compile mistakes the signature of a variadic forward when nothing requires a gradient.
        if torch.compiler.is_compiling() and not (torch.is_grad_enabled() and _any_requires_grad(flat)):
            return op(*arguments)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            output = Differentiable.apply(lengths, *flat)  # type: ignore[no-untyped-call]
        else:
            # The same, but the signature of forward is not read anew at every call, the slowest part.
            apply = super(torch.autograd.Function, Differentiable).apply
            output = apply(lengths, *flat)  # type: ignore[no-untyped-call]
        return list(output) if returns_list else output

    return call
