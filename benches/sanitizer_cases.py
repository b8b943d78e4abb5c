"""Small calls that reach every CUDA kernel, for ``compute-sanitizer``; see ``make gpu-check``."""

from __future__ import annotations

import torch

from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.gram import gram
from mmfl_fast.kernels.mix import mix


def main() -> None:
    torch.set_default_device("cuda")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        # A warp's rows in tiles of 16, 32 and 64, then pairs of groups; columns that end inside a step.
        for rows in (3, 20, 50, 70):
            x = torch.randn(rows, 2051).to(dtype)
            for blocks in ([x], [x[:, 1:], x.T[:5].T]):
                products, means = gram(blocks, len(blocks), True, [], True, True)
                gram(blocks, len(blocks), True, [block[0] for block in blocks], False, False)
                for outputs in (1, 9):
                    matrix = torch.rand(outputs, rows, dtype=torch.float64)
                    mix(blocks, len(blocks), True, matrix, means, True)
                assert products.isfinite().all()
    torch.cuda.synchronize()


if __name__ == "__main__":
    with use_backend("native"):
        main()
