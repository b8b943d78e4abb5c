"""The compiled extension; a tree that was never built gets a stand-in that says how to build it."""

from __future__ import annotations

from typing import Any

try:
    from mmfl_fast import _C

    missing = ""
except ImportError as error:
    missing = f"the extension is not built ({error}); run `pip install .`"

    class _Missing:
        def __getattr__(self, name: str) -> Any:
            raise ImportError(f"mmfl_fast._C.{name}: {missing}")

    _C = _Missing()  # type: ignore[assignment]

__all__ = ["_C", "missing"]
