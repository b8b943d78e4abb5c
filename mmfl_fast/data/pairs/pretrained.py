"""Loading a model of transformers from a folder: whole, frozen, and without the network; where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmfl_fast.data.pairs.model_folder import UnusableModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pretrained(auto_class: Any, folder: Path, option: str, dtype: torch.dtype) -> Any:
    """Return the model in evaluation mode, on the GPU if there is one.

    Args:
        auto_class: such as ``transformers.AutoModel``.
        folder: that holds it.
        option: what names the model, for messages.
        dtype: to compute in, whatever the weights were saved in.

    Raises:
        UnusableModelError: the weights are incomplete.
    """
    # Only safetensors: other weights are pickles, which run what they hold.
    model, told = auto_class.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=dtype
    )
    # transformers draws at random what a checkpoint lacks. Poolers on top are not used here.
    lacking = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        raise UnusableModelError(
            f"{option}: the weights in {folder.absolute()} lack {len(lacking)} tensors of a "
            f"{type(model).__name__}, first {lacking[0]}"
        )
    return model.to(device()).eval()


def device() -> str:
    """Return where models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computed_in(dtype: str) -> torch.dtype:
    """Return the torch dtype of a name in ``DTYPES``.

    Raises:
        ValueError: the GPU on which models run has no bfloat16.
    """
    if (
        dtype == "bfloat16"
        and device() == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ValueError(
            f"dtype 'bfloat16': {torch.cuda.get_device_name()} does not compute in it; take float32"
        )
    return DTYPES[dtype]
