"""timm models from folders and from the hub; these tests need a torchvision that fits torch."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fusemix.encoders import encode_batch, load_encoder
from fusemix.errors import EncoderError, MissingExtraError

try:
    import timm
except (ImportError, RuntimeError):  # a torchvision that was built for another torch raises RuntimeError
    timm = None

needs_timm = pytest.mark.skipif(timm is None, reason="timm with a torchvision that imports")
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
PICTURES = {"input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "crop_pct": 0.8}


def pictures(count=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40 + 9 * i, 50, 3), dtype=np.uint8)) for i in range(count)]


def save_vit(folder, arguments=ARGUMENTS, **settings):
    """Save as timm does for the hub; return the model."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **ARGUMENTS)
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"interpolation": "bicubic", "classifier": "head", "file": "/etc/passwd", **PICTURES, **settings}
    write_config(folder, architecture="vit_tiny_patch16_224", model_args=arguments, pretrained_cfg=pretrained)
    return model.eval()


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"'timm:vit_tiny' needs timm .* pip install \"fusemix\[timm\]\""):
        load_encoder("timm:vit_tiny", "image")


@needs_timm
def test_a_folder_equals_its_timm_model(tmp_path):
    model = save_vit(tmp_path / "m")
    encoder = load_encoder(f"timm:{tmp_path}/m", "image")
    data = {**PICTURES, "input_size": (3, 32, 32), "interpolation": "bicubic"}
    transform = timm.data.create_transform(**data, is_training=False)
    with torch.inference_mode():
        batch = torch.stack([transform(image) for image in pictures()])
        expected = model.forward_head(model.forward_features(batch), pre_logits=True)
    np.testing.assert_allclose(encode_batch(encoder, pictures()), expected, atol=1e-5)
    assert encoder.source == f"timm:{tmp_path}/m" and encoder.fingerprint["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert json.loads(json.dumps(encoder.fingerprint)) == encoder.fingerprint
    again = load_encoder(f"timm:{tmp_path}/m/model.safetensors", "image")
    assert again.fingerprint == encoder.fingerprint


@needs_timm
@pytest.mark.parametrize(
    ("change", "field"), [({"mean": [0.5, 0.5, 0.5]}, "preprocessing"), ({"crop_pct": 1.0}, "preprocessing")]
)
def test_the_fingerprint_follows_the_preprocessing(change, field, tmp_path):
    save_vit(tmp_path / "m")
    first = load_encoder(f"timm:{tmp_path}/m", "image").fingerprint
    save_vit(tmp_path / "m", **change)
    after = load_encoder(f"timm:{tmp_path}/m", "image").fingerprint
    assert {name for name in after if after[name] != first[name]} == {field}


@needs_timm
def test_pickles_are_refused(tmp_path):
    save_vit(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    for spec in (f"timm:{tmp_path}/m", f"timm:{tmp_path}/m/pytorch_model.bin"):
        with pytest.raises(EncoderError, match="holds no model.safetensors; other checkpoints are pickles"):
            load_encoder(spec, "image")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(EncoderError, match="does not fit vit_tiny_patch16_224"):
        load_encoder(f"timm:{tmp_path}/m", "image")


@needs_timm
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_args": {}}, "names no architecture of timm .*KeyError"),
        ({"architecture": "local-dir:/tmp"}, "timm has no model 'local-dir:/tmp'"),
        ({"architecture": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'"),
        (
            {"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "evil.bin"}},
            "model_args.checkpoint_path is 'evil.bin'; wanted numbers only",
        ),
        (
            {"architecture": "vit_tiny_patch16_224", "model_args": {"kwargs": {"checkpoint_path": "evil.bin"}}},
            "wanted numbers only",
        ),
        ({"architecture": "vit_tiny_patch16_224"}, "does not fit vit_tiny_patch16_224"),
        (
            {"architecture": "vit_tiny_patch16_224", "model_args": {**ARGUMENTS, "depth": 3}},
            "lacks 12 weights .*random",
        ),
        ({"architecture": "vit_tiny_patch16_224", "model_args": {"no_such_thing": 1}}, "vit_tiny_patch16_224"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(config, message, tmp_path):
    save_vit(tmp_path / "m")
    write_config(tmp_path / "m", **config)
    with pytest.raises(EncoderError, match=message):
        load_encoder(f"timm:{tmp_path}/m", "image")


@needs_timm
def test_a_hub_name_reads_the_safetensors_of_its_repository(tmp_path, monkeypatch):
    import huggingface_hub

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    encoder = load_encoder("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", "image")
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")]
    assert encode_batch(encoder, pictures()).shape == (3, 192)
    assert encoder.source == "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@needs_timm
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_model", "timm has no model 'no_such_model', and there is no such folder"),
        ("vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
        ("vit_tiny_patch16_224.no_such_tag", "timm has no weights 'vit_tiny_patch16_224.no_such_tag'; found: "),
        ("vit_tiny_patch16_224", "no model.safetensors of timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k from the hub"),
    ],
)
def test_a_name_that_timm_does_not_have_is_named(name, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(f"timm:{name}", "image")
