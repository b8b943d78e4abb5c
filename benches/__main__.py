"""``python -m mmfl_fast.benches``: ``mmfl-fast bench ops`` without what only the engine needs installed."""

import typer

from .command import bench_ops

if __name__ == "__main__":
    typer.run(bench_ops)
