"""Building blocks of the models, as pure functions of named parameters."""

from mmfl_fast.nn.attention import attention, init_attention, init_transformer_layer, transformer_layer
from mmfl_fast.nn.attention_fusion import attention_fusion, init_attention_fusion
from mmfl_fast.nn.convolutions import convolutions, init_convolutions
from mmfl_fast.nn.encoders import EncoderKind, encoder, encoder_kind, encoder_steps, init_encoder
from mmfl_fast.nn.gru import gru, init_gru
from mmfl_fast.nn.joint_encoder import init_joint_encoder, joint_encoder
from mmfl_fast.nn.linear import init_linear, init_mlp, linear, mlp
from mmfl_fast.nn.losses import cross_entropy
from mmfl_fast.nn.meta_gradient import adapted_loss, inner_adam, inner_step
from mmfl_fast.nn.modality_input import init_modality_input, modality_input
from mmfl_fast.nn.operators import orthonormal_rows, retract_rows
from mmfl_fast.nn.picture_branch import init_picture_branch, picture_branch, picture_features
from mmfl_fast.nn.presence import known_rows, named, surely_absent, surely_complete
from mmfl_fast.nn.scale_gradient import scale_gradient
from mmfl_fast.nn.two_layer import init_two_layer, two_layer
from mmfl_fast.nn.unit_rows import unit_rows

__all__ = [
    "EncoderKind",
    "adapted_loss",
    "attention",
    "attention_fusion",
    "convolutions",
    "cross_entropy",
    "encoder",
    "encoder_kind",
    "encoder_steps",
    "gru",
    "init_attention",
    "init_attention_fusion",
    "init_convolutions",
    "init_encoder",
    "init_gru",
    "init_joint_encoder",
    "init_linear",
    "init_mlp",
    "init_modality_input",
    "init_picture_branch",
    "init_transformer_layer",
    "init_two_layer",
    "inner_adam",
    "inner_step",
    "joint_encoder",
    "known_rows",
    "linear",
    "mlp",
    "modality_input",
    "named",
    "orthonormal_rows",
    "picture_branch",
    "picture_features",
    "retract_rows",
    "scale_gradient",
    "surely_absent",
    "surely_complete",
    "transformer_layer",
    "two_layer",
    "unit_rows",
]
