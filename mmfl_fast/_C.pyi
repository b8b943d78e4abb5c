"""The compiled kernels. They take tensors and trust them; only ``mmfl_fast.kernels`` calls them."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

_Int64Array = npt.NDArray[np.int64]

built_with_cuda: bool

def set_exchange(capsule: object) -> None: ...
def alike(tensors: list[Tensor], segments: int, types: tuple[type, ...]) -> bool: ...
def on_threads(function: Callable[[], None], threads: int) -> None: ...
def simd_level() -> str: ...
def cuda_report() -> tuple[int, int, str, list[tuple[str, int, int]]]: ...
def gram(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    origin: list[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    gram: Tensor,
    row_mean: Tensor,
    threads: int,
) -> None: ...
def mix(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor | None,
    centre_columns: bool,
    outputs: list[Tensor],
    threads: int,
) -> None: ...
def cross_gram_sq(
    blocks: list[Tensor], mean_columns: bool, normalise_rows: bool, out: Tensor, threads: int
) -> None: ...
def prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    loss: Tensor,
    log_sum: Tensor,
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
    optimiser: npt.NDArray[np.float64],
    packed: int,
    packed_size: int,
    loss: int,
    losses: int,
) -> bool: ...
def prototype_loss_backward(
    loss_gradient: Tensor,
    loss: Tensor,
    log_sum: Tensor,
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    feature_gradient: Tensor,
    prototype_gradient: Tensor,
    threads: int,
) -> None: ...
def weighted_mean(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    weights: Tensor,
    outputs: list[Tensor],
    threads: int,
) -> bool: ...
def mean_prototype_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    out: Tensor,
    threads: int,
) -> int: ...

# In place.
def cosine(products: Tensor, row_mean: Tensor, negligible: float, threads: int) -> None: ...
def angular(products: Tensor, row_mean: Tensor, negligible: float, threads: int) -> None: ...
def sq_distance(products: Tensor, threads: int) -> None: ...
def alignment(products: Tensor, noise: float, threads: int) -> None: ...

# Only where built_with_cuda is true. The last arguments are those of mmfl_fast.kernels.cuda_place.
def gram_cuda(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    origin: list[Tensor],
    mean_origin: bool,
    centre_rows: bool,
    tf32: bool,
    gram: Tensor,
    row_mean: Tensor,
    device: int,
    stream: int,
    allocate: Callable[[int], Tensor],
) -> None: ...
def cosine_cuda(
    products: Tensor, row_mean: Tensor | None, threshold: float, out: Tensor, device: int, stream: int
) -> None: ...
def angular_cuda(
    products: Tensor, row_mean: Tensor | None, threshold: float, out: Tensor, device: int, stream: int
) -> None: ...
def sq_distance_cuda(
    products: Tensor, row_mean: Tensor | None, threshold: float, out: Tensor, device: int, stream: int
) -> None: ...
def alignment_cuda(
    products: Tensor, row_mean: Tensor | None, threshold: float, out: Tensor, device: int, stream: int
) -> None: ...
def mix_cuda(
    blocks: list[Tensor],
    segments: int,
    stacked: bool,
    matrix: Tensor,
    row_offset: Tensor | None,
    centre_columns: bool,
    outputs: list[Tensor],
    device: int,
    stream: int,
    allocate: Callable[[int], Tensor],
) -> None: ...
def cross_gram_sq_cuda(
    blocks: list[Tensor],
    mean_columns: bool,
    normalise_rows: bool,
    tf32: bool,
    out: Tensor,
    device: int,
    stream: int,
    allocate: Callable[[int], Tensor],
) -> None: ...
def prototype_loss_cuda(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
    loss: Tensor,
    log_sum: Tensor,
    device: int,
    stream: int,
    allocate: Callable[[int], Tensor],
) -> None: ...
def prototype_loss_backward_cuda(
    loss_gradient: Tensor,
    loss: Tensor,
    log_sum: Tensor,
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_mask: Tensor | None,
    temperature: float,
    normalise: bool,
    tf32: bool,
    feature_gradient: Tensor,
    prototype_gradient: Tensor,
    device: int,
    stream: int,
    allocate: Callable[[int], Tensor],
) -> None: ...
