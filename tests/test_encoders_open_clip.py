"""open_clip models from files and from the hub; these tests need a torchvision that fits torch."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusemix.encoders import encode_batch, load_encoder
from fusemix.errors import EncoderError, MissingExtraError
from test_encoders_timm import pictures

try:
    import open_clip
except (ImportError, RuntimeError):  # a torchvision that was built for another torch raises RuntimeError
    open_clip = None

needs_open_clip = pytest.mark.skipif(open_clip is None, reason="open_clip with a torchvision that imports")
NAME = "open_clip_model.safetensors"
TEXTS = ["a red kite", "", "the blue sea " * 60]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with random weights of a tiny architecture, ViT-tiny, and the model."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "ViT-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "ViT-tiny.json")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-tiny").eval()
    save_file(model.state_dict(), folder / NAME)
    return folder, model


def test_without_open_clip_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        MissingExtraError, match=r"'open_clip:ViT-B-32/x' needs .* pip install \"fusemix\[open-clip\]\""
    ):
        load_encoder("open_clip:ViT-B-32/x", "image")


@needs_open_clip
@pytest.mark.parametrize("place", ["", f"/{NAME}"])
def test_a_folder_or_file_equals_its_open_clip_model(place, saved):
    folder, model = saved
    spec = f"open_clip:ViT-tiny/{folder}{place}"
    transform = open_clip.image_transform(32, is_train=False)
    with torch.inference_mode():
        images = model.encode_image(torch.stack([transform(image) for image in pictures()]))
        texts = model.encode_text(open_clip.get_tokenizer("ViT-tiny")(TEXTS))
    image, text = load_encoder(spec, "image"), load_encoder(spec, "text")
    np.testing.assert_allclose(encode_batch(image, pictures()), images, atol=1e-5)
    np.testing.assert_allclose(encode_batch(text, TEXTS), texts, atol=1e-5)
    assert (image.takes, text.takes) == ("image", "text") and image.source == spec
    assert json.loads(json.dumps(image.fingerprint)) == image.fingerprint
    assert image.fingerprint["weights"] == text.fingerprint["weights"]


@needs_open_clip
def test_the_preprocessing_beside_the_weights_is_followed(saved, tmp_path):
    shutil.copy(saved[0] / NAME, tmp_path / NAME)
    plain = load_encoder(f"open_clip:ViT-tiny/{tmp_path}", "image")
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "size": 999}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": settings}))
    other = load_encoder(f"open_clip:ViT-tiny/{tmp_path}", "image")
    assert other.fingerprint["preprocessing"]["mean"] == [0.5] * 3 and other.fingerprint["preprocessing"]["size"] == [
        32,
        32,
    ]
    assert {k for k in plain.fingerprint if plain.fingerprint[k] != other.fingerprint[k]} == {"preprocessing"}
    assert not np.allclose(plain.encode(pictures()), other.encode(pictures()), atol=1e-3)
    (tmp_path / "open_clip_config.json").write_text("[1]")
    with pytest.raises(EncoderError, match="open_clip_config.json is damaged"):
        load_encoder(f"open_clip:ViT-tiny/{tmp_path}", "image")


@needs_open_clip
def test_pickles_and_weights_of_another_model_are_refused(saved, tmp_path):
    for name in ("open_clip_pytorch_model.bin", "model.pt", "weights.npz"):
        shutil.copy(saved[0] / NAME, tmp_path / name)
        with pytest.raises(EncoderError, match="other checkpoints are pickles"):
            load_encoder(f"open_clip:ViT-tiny/{tmp_path / name}", "image")
    with pytest.raises(EncoderError, match="other checkpoints are pickles"):
        load_encoder(f"open_clip:ViT-tiny/{tmp_path}", "image")
    weights = load_file(saved[0] / NAME)
    weights.pop("visual.proj")
    save_file(weights, tmp_path / NAME)
    with pytest.raises(EncoderError, match=r"does not fit ViT-tiny: .*visual.proj"):
        load_encoder(f"open_clip:ViT-tiny/{tmp_path}", "image")
    (tmp_path / NAME).write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(EncoderError, match="does not fit ViT-tiny"):
        load_encoder(f"open_clip:ViT-tiny/{tmp_path}", "image")


@needs_open_clip
def test_a_tag_of_the_hub_decides_weights_preprocessing_and_activation(tmp_path, monkeypatch):
    import huggingface_hub

    torch.manual_seed(0)
    save_file(open_clip.create_model("ViT-S-32-alt").state_dict(), tmp_path / NAME)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["a_tag"])
    tag = {"hf_hub": "org/repository/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag_: tag)
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    encoder = load_encoder("open_clip:ViT-S-32-alt/a_tag", "image")
    assert asked == [("org/repository", NAME)] and encoder.source == "open_clip:ViT-S-32-alt/a_tag"
    assert encoder.fingerprint["preprocessing"]["mean"] == [0.5] * 3
    assert encoder.fingerprint["config"]["forced_quick_gelu"] is True
    assert "QuickGELU" in str(encoder.model.visual)
    tag.pop("hf_hub")
    with pytest.raises(EncoderError, match="published as a pickle only"):
        load_encoder("open_clip:ViT-S-32-alt/a_tag", "image")


@needs_open_clip
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("ViT-B-33/openai", "image", "open_clip has no model 'ViT-B-33'; .*did you mean 'ViT-B-32'"),
        ("ViT-B-32/laion2b_s34b_b79", "image", "has no weights 'laion2b_s34b_b79', .*did you mean 'laion2b_s34b_b79k'"),
        ("ViT-B-32", "image", "ViT-B-32 has no weights ''"),
        ("local-dir:/tmp/x", "image", "open_clip has no model 'local-dir:'"),
        ("ViT-B-32/laion2b_s34b_b79k", "text", "from the hub"),
        ("ViT-B-32/laion2b_s34b_b79k", "audio", "encodes images or texts, not audio items"),
    ],
)
def test_a_name_that_open_clip_does_not_have_is_named(name, kind, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(f"open_clip:{name}", kind)
