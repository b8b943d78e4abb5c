"""Building blocks of the models, as pure functions of named parameters."""

from mmfl_fast.nn.attention_fusion import attention_fusion, init_attention_fusion
from mmfl_fast.nn.convolutions import convolutions, init_convolutions
from mmfl_fast.nn.encoders import EncoderKind, encoder, encoder_kind, encoder_steps, init_encoder
from mmfl_fast.nn.gru import gru, init_gru
from mmfl_fast.nn.linear import init_linear, init_mlp, linear, mlp
from mmfl_fast.nn.losses import cross_entropy
from mmfl_fast.nn.meta_gradient import adapted_loss, inner_step
from mmfl_fast.nn.modality_input import init_modality_input, modality_input
from mmfl_fast.nn.operators import orthonormal_rows, retract_rows
from mmfl_fast.nn.presence import surely_absent
from mmfl_fast.nn.scale_gradient import scale_gradient
from mmfl_fast.nn.two_layer import init_two_layer, two_layer
from mmfl_fast.nn.unit_rows import unit_rows

__all__ = [
    "EncoderKind",
    "adapted_loss",
    "attention_fusion",
    "convolutions",
    "cross_entropy",
    "encoder",
    "encoder_kind",
    "encoder_steps",
    "gru",
    "init_attention_fusion",
    "init_convolutions",
    "init_encoder",
    "init_gru",
    "init_linear",
    "init_mlp",
    "init_modality_input",
    "init_two_layer",
    "inner_step",
    "linear",
    "mlp",
    "modality_input",
    "orthonormal_rows",
    "retract_rows",
    "scale_gradient",
    "surely_absent",
    "two_layer",
    "unit_rows",
]
