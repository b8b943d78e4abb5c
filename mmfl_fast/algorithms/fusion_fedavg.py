"""FedAvg over the multimodal model: data-weighted averaging, whatever modalities a client holds.

Every client starts from the whole model and returns all of it, so the average takes in the encoders of
clients that do not own their modality. Such a client hands its copy back as it came, but for weight decay and
for what ``absent: zero-fill`` trains on inputs of zero: it holds the average back. Averaging an encoder over
its owners alone is another method, Mm-FedAvg (papers.md 6.7).
"""

from __future__ import annotations

from mmfl_fast.algorithms.fusion_backbone import FusionAlgorithm
from mmfl_fast.algorithms.task_models import TaskAverage


class FusionFedAvg(FusionAlgorithm, TaskAverage):
    """``theta = sum_i n_i theta_i / n`` over the clients of a task; tasks do not meet."""
