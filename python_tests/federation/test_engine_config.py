import pytest
import yaml
from pydantic import ValidationError

from mmfl_fast.algorithms.m3fed import M3FedConfig
from mmfl_fast.federation import EngineConfig
from mmfl_fast.federation.config import option_names, split_options


def test_options_find_their_owner():
    engine, own = split_options(
        {"participation": 0.5, "lambda": 0.3, "width": 800}, EngineConfig, M3FedConfig
    )
    assert (engine.participation, own.lambda_, own.width) == (0.5, 0.3, 800)


def test_without_projection_any_width_will_do():
    _, own = split_options({"width": 8, "projection": False}, EngineConfig, M3FedConfig)
    assert own.operator_rows > own.width


def test_unknown_options_name_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown config key 'particpation'; did you mean 'participation'\?"
    ):
        split_options({"particpation": 0.5}, EngineConfig, M3FedConfig)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"participation": 0.0}, "participation.*greater than 0.*got 0.0"),
        ({"clusters": "many"}, "clusters.*integer.*got 'many'"),
        ({"clustering": "kmeans"}, "clustering.*'spectral' or 'none'.*got 'kmeans'"),
        ({"consensus_scale": 0}, "consensus_scale.*greater than 0; got 0"),
        ({"learning_rate": float("inf")}, "learning_rate.*finite number; got inf"),
        ({"memory_gib": float("inf")}, "memory_gib.*finite number; got inf"),
        ({"width": 8}, r"^operator_rows must not exceed width.*got operator_rows 384 and width 8$"),
    ],
)
def test_values_that_do_not_fit_name_the_option(options, told):
    with pytest.raises(ValueError, match=told):
        split_options(options, EngineConfig, M3FedConfig)


def test_engine_and_algorithms_share_no_name():
    assert not set(option_names(EngineConfig)) & set(option_names(M3FedConfig))


def test_off_may_come_as_yaml_reads_it():
    assert EngineConfig.model_validate(yaml.safe_load("native_steps: off")).native_steps == "off"
    with pytest.raises(ValidationError, match="'auto' or 'off'"):
        EngineConfig(native_steps=True)
