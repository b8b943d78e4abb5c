"""Which backend ``auto`` takes, as measured by ``mmfl-fast bench ops``."""

from __future__ import annotations

# On a CPU: benches/results/cpu-ops, where "reference" is timed beside every case and none is slower than it.
# On a GPU: nothing has been measured yet, so nobody gets a kernel there without asking for it by name.
FASTEST = {
    "cpu": {
        "gram": "native",
        "mix": "native",
        "cross_gram_sq": "native",
        "prototype_loss": "native",
        "client_step": "native",
    },
    "cuda": {
        "gram": "reference",
        "mix": "reference",
        "cross_gram_sq": "reference",
        "prototype_loss": "reference",
        "client_step": "reference",
    },
}
