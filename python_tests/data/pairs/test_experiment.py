"""Raw pairs and frozen models as a YAML names them."""

import sys

import pytest
import torch

from mmfl_fast import run
from mmfl_fast.experiments.presets import load_experiment
from mmfl_fast.federation.standardisation import standardise


@pytest.fixture
def experiment(real_data, models, own_cache, tmp_path):
    text = f"""
algorithm: fedmvp
data:
  name: emoji
  root: {real_data("emoji")}
  image_encoder: {models("clip")}
  text_encoder: {models("bert")}
  features: tokens
  text_length: 8
  clients: 2
  alpha: 10.0
  samples_per_client: 12
missing: {{rate: 0.5, level: sample}}
completion:
  backend: generator
  text_to_image: {models("diffusion")}
  captioner: {models("blip2")}
  steps: 1
  answer_tokens: 3
  server_items: 10
config: {{width: 8, local_epochs: 1, batch_size: 8, items: 8}}
"""
    (tmp_path / "pairs.yaml").write_text(text)
    return lambda *changes: load_experiment(str(tmp_path / "pairs.yaml"), changes)


def test_from_raw_pairs_to_a_trained_model(experiment, own_cache):
    fed = experiment().federation(0)
    (task,) = fed.tasks
    assert {m: tuple(x.shape[1:]) for m, x in task.inputs.items()} == {"image": (5, 16), "text": (8, 16)}
    assert task.present.all()
    assert task.num_samples == 24
    lacked = experiment("completion=null").federation(0).tasks[0]
    assert not lacked.present.all()
    # Only what the cap left was encoded, and what was made.
    assert len(list((own_cache / "encoded").rglob("*.safetensors"))) <= 6
    config = {**experiment().options_of("fedmvp"), "items_from": "prompts"}
    result = run(fed, "fedmvp", rounds=1, config=config, progress=False)
    assert 0 <= result.final["accuracy"] <= 1
    assert not lacked.server_items
    assert {m: tuple(x.shape) for m, x in task.server_items.items()} == {
        "image": (10, 5, 16),
        "text": (10, 8, 16),
    }
    (compared,) = standardise(fed).tasks
    for m, x in result.state.items[0].items():
        assert torch.equal(x, compared.server_items[m][:8])
        # Random weights still tell images apart.
        assert len(x.flatten(1).unique(dim=0)) > 1


def test_the_servers_items_do_not_hang_on_the_completion(experiment):
    made = experiment().federation(0).tasks[0].server_items
    (task,) = experiment("completion.backend=none", "data.samples_per_client=10").federation(0).tasks
    assert not task.present.all()
    assert all(torch.equal(x, made[m]) for m, x in task.server_items.items())
    (rough,) = experiment("completion.dtype=bfloat16").federation(0).tasks
    assert not torch.equal(rough.server_items["image"], made["image"])


def test_wrong_models_are_told(experiment, models, monkeypatch):
    with pytest.raises(FileNotFoundError, match="image_encoder: there is no model '/no/clip'"):
        experiment("data.image_encoder=/no/clip").federation(0)
    with pytest.raises(FileNotFoundError, match="captioner: there is no model '/no/blip'"):
        experiment("completion.captioner=/no/blip").federation(0)
    with pytest.raises(ValueError, match="lack their image; text_to_image must name a pipeline"):
        experiment("completion.text_to_image=null").federation(0)
    none = ("completion.backend=none", "completion.text_to_image=null")
    with pytest.raises(
        ValueError, match=r"10 server_items are to be made .* 9 classes; text_to_image must name a pip"
    ):
        experiment(*none).federation(0)
    with pytest.raises(ValueError, match="unknown key of completion 'captoner'; did you mean 'captioner'"):
        experiment("completion.captoner=x").federation(0)
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 'few'"):
        experiment("completion.steps=few").federation(0)
    changed = experiment(f"data.image_encoder={models('vit')}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"image_encoder needs transformers: pip install 'mmfl_fast\[founda"):
        changed.federation(0)


def test_the_preset_and_its_models(real_data, own_cache):
    changes = ("data.samples_per_client=12", f"data.root={real_data('emoji')}")
    (task,) = load_experiment("fedmvp-emoji-cpu", changes).federation(0).tasks
    assert {m: tuple(x.shape[1:]) for m, x in task.inputs.items()} == {"image": (16, 192), "text": (512,)}
    with pytest.raises(FileNotFoundError, match="text_encoder: there is no model 'google-bert/bert-base"):
        load_experiment("fedmvp-emoji-cpu", [*changes, "data.text_encoder=google-bert/bert-base"]).federation(
            0
        )
