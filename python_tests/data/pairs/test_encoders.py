import io
import os
import shutil
import socket
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mmfl_fast.data.dataset import CorruptDataError, MissingDataError
from mmfl_fast.data.pairs import encoder as encoding
from mmfl_fast.data.pairs.encoder import encoded
from mmfl_fast.data.pairs.frozen import FrozenImageEncoder, FrozenTextEncoder
from mmfl_fast.data.pairs.model_folder import (
    MissingModelError,
    UnusableModelError,
    folder_digest,
    model_folder,
)
from mmfl_fast.data.pairs.painter import Painter
from mmfl_fast.data.pairs.picture import Picture
from mmfl_fast.data.pairs.plain import PixelEncoder, WordEncoder

TEXTS = ["a red bird", "a photo of the blue flower .", "a"]

pytestmark = pytest.mark.usefixtures("own_cache")


def pixels_of(pictures, size=16):
    """What the preprocessors of the tiny models come to: bicubic or bilinear resizing, scaled to [-1, 1]."""
    small = [picture.rgb().resize((size, size), Image.Resampling.BILINEAR) for picture in pictures]
    return torch.stack([torch.from_numpy(np.asarray(x) / 127.5 - 1).permute(2, 0, 1) for x in small]).float()


def test_tokens_and_pooled_features_of_vit(models, pictures):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(models("vit")).eval()
    with torch.no_grad():
        states = model(pixel_values=pixels_of(pictures)).last_hidden_state.numpy()
    tokens = encoded(FrozenImageEncoder(str(models("vit")), tokens=True), pictures)
    assert tokens.shape == (5, 5, 16)  # 2 x 2 patches and the class token
    assert tokens.dtype == np.float32
    assert np.allclose(tokens, states, atol=1e-5)
    pooled = encoded(FrozenImageEncoder(str(models("vit"))), pictures)
    assert np.array_equal(pooled, tokens[:, 0])


def test_pooled_features_of_clip_lie_in_the_shared_space(models, pictures):
    from transformers import CLIPModel, CLIPProcessor

    image = encoded(FrozenImageEncoder(str(models("clip"))), pictures)
    text = encoded(FrozenTextEncoder(str(models("clip")), length=8), TEXTS)
    assert image.shape == (5, 8)
    assert text.shape == (3, 8)
    model, told = (
        CLIPModel.from_pretrained(models("clip")).eval(),
        CLIPProcessor.from_pretrained(models("clip")),
    )
    batch = told(
        text=TEXTS,
        images=[p.rgb() for p in pictures],
        padding="max_length",
        max_length=8,
        return_tensors="pt",
    )
    with torch.no_grad():
        similar = model(**batch).logits_per_image / model.logit_scale.exp()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    assert np.allclose(unit[0] @ unit[1].T, similar.numpy(), atol=1e-5)
    tokens = encoded(FrozenImageEncoder(str(models("clip")), tokens=True), pictures)
    assert tokens.shape == (5, 5, 16)


def test_token_states_of_bert_end_with_the_text(models):
    from transformers import BertModel

    states = encoded(FrozenTextEncoder(str(models("bert")), tokens=True, length=7), TEXTS)
    assert states.shape == (3, 7, 16)
    assert [int(row.any(axis=1).sum()) for row in states] == [3, 7, 1]
    model = BertModel.from_pretrained(models("bert")).eval()
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[4, 10, 13]])).last_hidden_state[0].numpy()
    assert np.allclose(states[0, :3], alone, atol=1e-5)
    pooled = encoded(FrozenTextEncoder(str(models("bert")), length=7), TEXTS)
    assert np.allclose(pooled[0], alone.mean(axis=0), atol=1e-5)


def test_bfloat16_is_close_and_cached_apart(models, pictures):
    for kind, model, items in (
        (FrozenImageEncoder, "clip", pictures),
        (FrozenImageEncoder, "vit", pictures),
        (FrozenTextEncoder, "clip", TEXTS),
        (FrozenTextEncoder, "bert", TEXTS),
    ):
        for tokens in (True, False):
            options = {"tokens": tokens, **({"length": 8} if kind is FrozenTextEncoder else {})}
            exact, rough = (
                encoded(kind(str(models(model)), **options, dtype=dtype), items)
                for dtype in ("float32", "bfloat16")
            )
            assert rough.dtype == np.float32
            assert not np.array_equal(exact, rough)
            assert np.linalg.norm(exact - rough) < 0.02 * np.linalg.norm(exact)


def test_weights_saved_in_half_are_computed_with_in_float32(models, pictures, tmp_path):
    from transformers import CLIPModel

    folder = shutil.copytree(models("clip"), tmp_path / "half")
    half = CLIPModel.from_pretrained(folder, dtype=torch.float16)
    half.save_pretrained(folder)
    half.float().save_pretrained(shutil.copytree(folder, tmp_path / "float"))
    for kind, items in ((FrozenImageEncoder, pictures), (FrozenTextEncoder, TEXTS)):
        options = {} if kind is FrozenImageEncoder else {"length": 8}
        rows = [encoded(kind(str(tmp_path / name), **options), items) for name in ("half", "float")]
        assert np.array_equal(*rows)


def test_a_gpu_without_bfloat16_is_told(models, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for kind in (FrozenImageEncoder, FrozenTextEncoder, partial(Painter, steps=1, guidance=None)):
        with pytest.raises(
            ValueError, match="dtype 'bfloat16': Old GPU does not compute in it; take float32"
        ):
            kind(str(models("clip")), dtype="bfloat16").load()


def test_an_item_is_encoded_once(models, pictures, own_cache, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 2)
    frozen = FrozenImageEncoder(str(models("vit")))
    first = encoded(frozen, [*pictures[:3], pictures[0]])
    assert np.array_equal(first[0], first[3])
    files = sorted((own_cache / "encoded" / frozen.identity).iterdir())
    assert len(files) == 2
    again = FrozenImageEncoder(str(models("vit")))
    monkeypatch.setattr(FrozenImageEncoder, "load", lambda _: pytest.fail("the model was loaded"))
    # Names and order are others, the contents are the same.
    renamed = [Picture("other", p.content()) for p in pictures[:3]]
    assert np.array_equal(encoded(again, renamed[::-1]), first[:3][::-1])
    assert sorted((own_cache / "encoded" / frozen.identity).iterdir()) == files


def test_a_kill_loses_one_batch(pictures, own_cache, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 2)
    plain = PixelEncoder()
    whole = np.concatenate([plain.load()([p]) for p in pictures])
    calls = []

    def load(self):
        def encode(batch):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(len(batch))
            return np.stack([whole[pictures.index(p)] for p in batch])

        return encode

    monkeypatch.setattr(PixelEncoder, "load", load)
    with pytest.raises(KeyboardInterrupt):
        encoded(plain, pictures)
    assert calls == [2, 2]
    assert not list(own_cache.rglob("*.draft"))
    calls.clear()
    assert np.array_equal(encoded(plain, pictures), whole)
    assert calls == [1]


def test_a_damaged_file_is_told_and_made_anew(pictures, own_cache, caplog):
    whole = encoded(PixelEncoder(), pictures)
    (path,) = (own_cache / "encoded").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert np.array_equal(encoded(PixelEncoder(), pictures), whole)
    assert "checksums do not match; encoding its items again" in caplog.text
    caplog.clear()
    assert np.array_equal(encoded(PixelEncoder(), pictures), whole)
    assert not caplog.records


def test_the_cache_follows_model_kind_and_length(models, tmp_path):
    def names(folder):
        return [
            FrozenTextEncoder(str(folder), tokens, length).identity
            for tokens in (True, False)
            for length in (7, 8)
        ]

    moved = shutil.copytree(models("bert"), tmp_path / "moved")
    assert len(set(names(moved))) == 4
    assert names(moved) == names(models("bert"))
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not set(names(moved)) & set(names(models("bert")))


def test_large_files_count_by_size_and_time(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(2 << 20))
    before = folder_digest(tmp_path)
    assert folder_digest(tmp_path) == before
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "config.json.metadata").write_text("downloaded today")
    assert folder_digest(tmp_path) == before
    os.utime(tmp_path / "weights", (1, 1))
    assert folder_digest(tmp_path) != before


def test_no_network_is_touched(models, pictures, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    encoded(FrozenImageEncoder(str(models("clip"))), pictures)
    encoded(FrozenTextEncoder(str(models("clip")), length=8), TEXTS)
    with pytest.raises(MissingModelError):
        model_folder("image_encoder", "openai/clip-vit-base-patch32")


def test_a_downloaded_copy_is_found_by_name(models, tmp_path, monkeypatch):
    hub, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    snapshot = hub / "models--someone--bert-tiny" / "snapshots" / commit
    shutil.copytree(models("bert"), snapshot)
    (hub / "models--someone--bert-tiny" / "refs").mkdir()
    (hub / "models--someone--bert-tiny" / "refs" / "main").write_text(commit)
    import huggingface_hub

    whole = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: whole(*a, cache_dir=hub, **k))
    assert model_folder("text_encoder", "someone/bert-tiny") == snapshot
    assert model_folder("text_encoder", f"someone/bert-tiny@{commit}") == snapshot
    with pytest.raises(MissingModelError, match="hf download someone/bert-tiny --revision other"):
        model_folder("text_encoder", "someone/bert-tiny@other")


def test_an_absent_model_says_all_a_user_needs(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        FrozenImageEncoder(str(tmp_path / "no" / "model")).identity  # noqa: B018
    for part in ("image_encoder: there is no model", str(tmp_path / "no"), "HF_HOME", "hf download"):
        assert part in str(caught.value)


def test_wrong_folders(models, pictures, tmp_path):
    cases = [
        (
            FrozenImageEncoder(str(models("bert"))),
            "image_encoder: .*holds a BertModel, which takes input_ids",
        ),
        (FrozenTextEncoder(str(models("vit"))), "text_encoder: .*holds a ViTModel, which takes pixel_values"),
        (FrozenImageEncoder(str(tmp_path)), "image_encoder: .*a model of images with its preprocessor"),
        (FrozenTextEncoder(str(models("bert")), length=49), "text_length: .*at most 48 tokens, got 49"),
    ]
    for frozen, message in cases:
        with pytest.raises(UnusableModelError, match=message):
            frozen.load()


def test_incomplete_weights_are_refused(models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models("bert"), tmp_path / "short")
    tensors = load_file(folder / "model.safetensors")
    without_pooler = {name: x for name, x in tensors.items() if not name.startswith("pooler.")}
    save_file(without_pooler, folder / "model.safetensors", metadata={"format": "pt"})
    FrozenTextEncoder(str(folder), length=8).load()
    del without_pooler["embeddings.word_embeddings.weight"]
    save_file(without_pooler, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnusableModelError, match=r"lack 1 tensors of a BertModel, first embeddings.word_emb"):
        FrozenTextEncoder(str(folder), length=8).load()


def test_without_the_libraries_the_extra_is_named(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"text_encoder needs transformers: pip install 'mmfl_fast\[found"):
        FrozenTextEncoder(str(models("bert"))).load()


def test_an_image_that_is_cut_short_is_named(tmp_path, pictures):
    whole = pictures[0].content()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("page.png", b"<html>")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptDataError, match=rf"{name} is not a readable image, or it is cut short"):
            encoded(PixelEncoder(), [*pictures, Picture.of_file(tmp_path / name)])
    with pytest.raises(MissingDataError, match=r"there is no image .*gone.png"):
        encoded(PixelEncoder(), [Picture.of_file(tmp_path / "gone.png")])


def test_what_is_transparent_becomes_white(tmp_path):
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "x.png")
    seen = Picture.of_file(tmp_path / "x.png").rgb()
    assert seen.getpixel((0, 0)) == (255, 255, 255)
    assert seen.getpixel((1, 0)) == (255, 0, 0)


def test_pixels_and_words():
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    content = io.BytesIO()
    image.save(content, "png")
    patches = PixelEncoder().load()([Picture("x", content.getvalue())])
    assert patches.shape == (1, 16, 192)
    # The second patch of the first row begins at column 8.
    assert np.allclose(patches[0, 1, :3] * 255, np.asarray(image)[0, 8])
    assert np.allclose(patches[0, 4, -3:] * 255, np.asarray(image)[15, 7])
    words = WordEncoder().load()(["a red bird", "a red bird", "flags"])
    assert words.shape == (3, 512)
    assert np.allclose(np.linalg.norm(words, axis=1), 1, atol=1e-6)
    assert np.array_equal(words[0], words[1])
    assert not np.array_equal(words[0], words[2])
