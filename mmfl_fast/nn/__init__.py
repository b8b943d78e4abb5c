"""Building blocks of the models, as pure functions of named parameters."""

from mmfl_fast.nn.linear import init_linear, init_mlp, linear, mlp
from mmfl_fast.nn.losses import cross_entropy
from mmfl_fast.nn.meta_gradient import adapted_loss, inner_adam, inner_step
from mmfl_fast.nn.modality_input import init_modality_input, modality_input
from mmfl_fast.nn.operators import orthonormal_rows, retract_rows
from mmfl_fast.nn.picture_branch import init_picture_branch, picture_branch, picture_features
from mmfl_fast.nn.scale_gradient import scale_gradient
from mmfl_fast.nn.unit_rows import unit_rows

__all__ = [
    "adapted_loss",
    "cross_entropy",
    "init_linear",
    "init_mlp",
    "init_modality_input",
    "init_picture_branch",
    "inner_adam",
    "inner_step",
    "linear",
    "mlp",
    "modality_input",
    "orthonormal_rows",
    "picture_branch",
    "picture_features",
    "retract_rows",
    "scale_gradient",
    "unit_rows",
]
