"""The compiled extension; a tree that was never built gets a stand-in that says how to build it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# A table of C functions that read a tensor without Python, or None before torch 2.10.
TORCH_EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)

try:
    from mmfl_fast import _C

    missing = ""
    _C.set_exchange(TORCH_EXCHANGE)
except ImportError as error:
    missing = f"the extension is not built ({error}); run `pip install .`"

    class _Missing:
        def __getattr__(self, name: str) -> Any:
            raise ImportError(f"mmfl_fast._C.{name}: {missing}")

    _C = _Missing()  # type: ignore[assignment]

__all__ = ["TORCH_EXCHANGE", "_C", "missing"]
