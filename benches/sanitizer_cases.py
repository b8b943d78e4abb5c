"""Small calls that reach every CUDA kernel, for ``compute-sanitizer``; see ``make gpu-check``."""

from __future__ import annotations

import torch

from mmfl_fast.kernels.backend import use_backend
from mmfl_fast.kernels.cross_gram_sq import cross_gram_sq
from mmfl_fast.kernels.gram import gram
from mmfl_fast.kernels.mix import mix
from mmfl_fast.kernels.prototype_loss import prototype_loss


def gram_and_mix() -> None:
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


def cross_gram_sq_both_ways() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        # By rows and by columns, in one tile and several, and a sum that is cut.
        for rows, columns in ((20, 150), (150, 20), (3, 2100), (2100, 3)):
            x = torch.randn(3, rows, columns).to(dtype)
            for flag in (False, True):
                result = cross_gram_sq([x], mean_columns=flag, normalise_rows=flag, tf32=flag)
                assert result.isfinite().all()


def prototype_loss_both_directions() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        # One tile and several, of rows, classes and dimensions; shared prototypes and those of a client.
        for clients, rows, dims, classes, groups in (
            (1, 70, 150, 130, 1),
            (3, 9, 33, 5, 3),
            (3, 40, 64, 9, 1),
        ):
            features = torch.randn(clients, rows, dims).to(dtype).requires_grad_()
            prototypes = torch.randn(groups, classes, dims).to(dtype).requires_grad_()
            labels = torch.randint(0, classes, (clients, rows))
            mask = torch.ones(clients, classes, dtype=torch.bool)
            for class_mask in (None, mask):
                loss = prototype_loss(features, labels, prototypes, class_mask, 0.2, True)
                gradients = torch.autograd.grad(loss.sum(), (features, prototypes))
                assert all(gradient.isfinite().all() for gradient in gradients)


def main() -> None:
    torch.set_default_device("cuda")
    gram_and_mix()
    cross_gram_sq_both_ways()
    prototype_loss_both_directions()
    torch.cuda.synchronize()


if __name__ == "__main__":
    with use_backend("native"):
        main()
