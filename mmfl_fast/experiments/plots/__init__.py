"""Figures of runs and comparisons, drawn without pyplot, global state or a display."""

from mmfl_fast.experiments.plots.client_dots import accuracy_by_client
from mmfl_fast.experiments.plots.client_maps import clusters_by_round, consensus_map, similarity_map
from mmfl_fast.experiments.plots.curves import (
    Histories,
    History,
    accuracy_by_round,
    agreement_by_round,
    train_loss_by_round,
)
from mmfl_fast.experiments.plots.style import png
from mmfl_fast.experiments.plots.table_figures import Sweep, accuracy_over, client_pass_bars

__all__ = [
    "Histories",
    "History",
    "Sweep",
    "accuracy_by_client",
    "accuracy_by_round",
    "accuracy_over",
    "agreement_by_round",
    "client_pass_bars",
    "clusters_by_round",
    "consensus_map",
    "png",
    "similarity_map",
    "train_loss_by_round",
]
