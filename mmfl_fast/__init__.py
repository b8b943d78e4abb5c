"""mmfl_fast: the fast path for multimodal federated learning.

``mf.ops`` are the kernels' public face, ``mf.data`` builds federations, ``mf.run`` trains an algorithm.
"""

from mmfl_fast import algorithms, data, federation, nn, ops
from mmfl_fast.experiments.run import run
from mmfl_fast.kernels.backend import BackendStatus, backends, use_backend

__version__ = "0.1.0"

__all__ = [
    "BackendStatus",
    "__version__",
    "algorithms",
    "backends",
    "data",
    "federation",
    "nn",
    "ops",
    "run",
    "use_backend",
]
