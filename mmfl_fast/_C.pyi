"""The compiled kernels. They take addresses; only ``mmfl_fast.kernels`` calls them."""

import numpy as np
import numpy.typing as npt

_Int64Array = npt.NDArray[np.int64]

built_with_cuda: bool

def simd_level() -> str: ...
def cuda_report() -> tuple[int, int, str, list[tuple[str, int, int]]]: ...
def gram(
    blocks: _Int64Array,
    widths: _Int64Array,
    origin: _Int64Array,
    mean_origin: bool,
    centre_rows: bool,
    gram: int,
    row_mean: int,
    threads: int,
) -> None: ...
def mix(
    blocks: _Int64Array,
    widths: _Int64Array,
    outputs: _Int64Array,
    matrix: int,
    matrix_rows: int,
    matrix_columns: int,
    row_offset: int,
    centre_columns: bool,
    threads: int,
) -> None: ...
def cross_gram_sq(
    blocks: _Int64Array,
    batch: int,
    rows: int,
    dtype: int,
    mean_columns: bool,
    normalise_rows: bool,
    out: int,
    threads: int,
) -> None: ...
def prototype_loss(
    sizes: _Int64Array,
    tensors: _Int64Array,
    temperature: float,
    normalise: bool,
    in_double: bool,
    loss: int,
    log_sum: int,
    threads: int,
) -> int: ...
def client_step(
    values: _Int64Array,
    instructions: _Int64Array,
    buffers: _Int64Array,
    written: _Int64Array,
    inputs: _Int64Array,
    rows: int,
    row_count: int,
    batch_size: int,
    capacity: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    packed: int,
    packed_size: int,
    loss: int,
    losses: int,
) -> bool: ...
def prototype_loss_backward(
    sizes: _Int64Array,
    tensors: _Int64Array,
    temperature: float,
    normalise: bool,
    in_double: bool,
    loss_gradient: _Int64Array,
    loss: int,
    log_sum: int,
    feature_gradient: int,
    prototype_gradient: int,
    threads: int,
) -> None: ...

# Only where built_with_cuda is true.
def gram_cuda_workspace(
    blocks: _Int64Array,
    widths: _Int64Array,
    origin: _Int64Array,
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
) -> int: ...
def gram_cuda(
    blocks: _Int64Array,
    widths: _Int64Array,
    origin: _Int64Array,
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
    gram: int,
    row_mean: int,
    device: int,
    stream: int,
    workspace: int,
    workspace_bytes: int,
) -> None: ...
def mix_cuda_workspace(
    blocks: _Int64Array,
    widths: _Int64Array,
    outputs: _Int64Array,
    matrix: int,
    matrix_rows: int,
    matrix_columns: int,
    row_offset: int,
    centre_columns: bool,
) -> int: ...
def mix_cuda(
    blocks: _Int64Array,
    widths: _Int64Array,
    outputs: _Int64Array,
    matrix: int,
    matrix_rows: int,
    matrix_columns: int,
    row_offset: int,
    centre_columns: bool,
    device: int,
    stream: int,
    workspace: int,
    workspace_bytes: int,
) -> None: ...
def cross_gram_sq_cuda_workspace(
    blocks: _Int64Array,
    batch: int,
    rows: int,
    dtype: int,
    mean_columns: bool,
    normalise_rows: bool,
    tf32: bool,
) -> int: ...
def cross_gram_sq_cuda(
    blocks: _Int64Array,
    batch: int,
    rows: int,
    dtype: int,
    mean_columns: bool,
    normalise_rows: bool,
    tf32: bool,
    out: int,
    device: int,
    stream: int,
    workspace: int,
    workspace_bytes: int,
) -> None: ...
def prototype_loss_cuda_workspace(
    sizes: _Int64Array,
    tensors: _Int64Array,
    temperature: float,
    normalise: bool,
    in_double: bool,
    tf32: bool,
) -> int: ...
def prototype_loss_cuda(
    sizes: _Int64Array,
    tensors: _Int64Array,
    temperature: float,
    normalise: bool,
    in_double: bool,
    tf32: bool,
    loss: int,
    log_sum: int,
    device: int,
    stream: int,
    workspace: int,
    workspace_bytes: int,
) -> None: ...
def prototype_loss_backward_cuda_workspace(
    sizes: _Int64Array,
    tensors: _Int64Array,
    temperature: float,
    normalise: bool,
    in_double: bool,
    tf32: bool,
) -> int: ...
def prototype_loss_backward_cuda(
    sizes: _Int64Array,
    tensors: _Int64Array,
    temperature: float,
    normalise: bool,
    in_double: bool,
    tf32: bool,
    loss_gradient: _Int64Array,
    loss: int,
    log_sum: int,
    feature_gradient: int,
    prototype_gradient: int,
    device: int,
    stream: int,
    workspace: int,
    workspace_bytes: int,
) -> None: ...
