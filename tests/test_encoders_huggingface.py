"""Encoders from transformers folders: tiny random models of the real classes, compared with the classes themselves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fusemix.data.store import difference
from fusemix.encoders import load_encoder
from fusemix.encoders.huggingface import choose_precision, hash_weights
from fusemix.errors import EncoderError

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "kite", "blue", "sea", "in", "the", "sky", "query", ":", "##s",
]  # fmt: skip
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIGHT = {**LAYERS, "image_size": 32, "patch_size": 8, "initializer_range": 0.1}
IDS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TEXT = {**LAYERS, **IDS, "max_position_embeddings": 16, "initializer_range": 0.1}
NARROW = {**TEXT, "hidden_size": 16}  # the text tower beside a vision tower: the width shows which was used
SQUARE = {"height": 32, "width": 32}
SHORT = {"shortest_edge": 32}


def first(model, batch):
    return model(**batch).last_hidden_state[:, 0]


def pooler(model, batch):
    return getattr(model, "vision_model", model)(**batch).pooler_output


SIAMESE = {
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=NARROW, vision_config=SIGHT, projection_dim=8)),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=NARROW, vision_config=SIGHT)),
}
VIT = (lambda: hf.ViTModel(hf.ViTConfig(**SIGHT)), lambda: hf.ViTImageProcessorPil(size=SQUARE), first)
# name: (model, processor, latents of a batch as the model class itself gives them)
IMAGE = {
    "vit": VIT,
    "dinov2": (
        lambda: hf.Dinov2Model(hf.Dinov2Config(**SIGHT)),
        lambda: hf.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
        first,
    ),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1])),
        lambda: hf.ConvNextImageProcessorPil(size=SHORT),
        lambda model, batch: model.layernorm(model(**batch).last_hidden_state.mean(dim=(2, 3))),
    ),
    "clip": (SIAMESE["clip"], lambda: hf.CLIPImageProcessorPil(size=SHORT, crop_size=SQUARE), pooler),
    "siglip": (SIAMESE["siglip"], lambda: hf.SiglipImageProcessorPil(size=SQUARE), pooler),
    "siglip2": (
        lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**LAYERS, num_patches=16, patch_size=8)),
        lambda: hf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        pooler,
    ),
    "swin": (
        lambda: hf.SwinModel(
            hf.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4)
        ),
        VIT[1],
        pooler,
    ),
    # The folder says to hide most patches at random; an encoder must see them all.
    "mae": (lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**SIGHT, mask_ratio=0.75)), VIT[1], first),
}


def save(folder, model, *parts):
    torch.manual_seed(0)
    for part in (model(), *parts):
        part.save_pretrained(folder)
    return folder


def save_image(folder, name="vit"):
    return save(folder, IMAGE[name][0], IMAGE[name][1]())


def save_bert(folder):
    return save(folder, lambda: hf.BertModel(hf.BertConfig(**TEXT)), wordpiece())


def wordpiece(single="[CLS] $A [SEP]", **tokens):
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"pad_token": "[PAD]"} | tokens))


def pictures():
    rng, sizes = np.random.default_rng(0), [(32, 32), (50, 41), (24, 64)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


@torch.inference_mode()
def tokens_of(model, text):
    """Final hidden states (T, D) of one text alone."""
    return model.eval()(**wordpiece()([text], return_tensors="pt")).last_hidden_state[0].numpy()


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def changed(folder, other, kind):
    one, two = load_encoder(str(folder), kind).fingerprint, load_encoder(str(other), kind).fingerprint
    return {name for name in one | two if one.get(name) != two.get(name)}


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_encoder_equals_its_model_class(name, tmp_path):
    folder = save_image(tmp_path / "m", name)
    encoder = load_encoder(str(folder), "image")
    latents = encoder.encode(pictures())
    kind, processor, direct = type(IMAGE[name][0]()), IMAGE[name][1](), IMAGE[name][2]
    settings = {"mask_ratio": 0.0} if name == "mae" else {}
    with torch.inference_mode():
        batch = processor(images=pictures(), return_tensors="pt")
        expected = direct(kind.from_pretrained(folder, **settings).eval(), batch).numpy()
    assert latents.shape == expected.shape == (3, 24 if name == "convnext" else 32)
    assert latents.dtype == np.float32 and np.isfinite(latents).all()
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    assert np.abs(latents[0] - latents[1]).max() > 1e-3
    for i, picture in enumerate(pictures()):
        np.testing.assert_allclose(encoder.encode([picture])[0], latents[i], atol=1e-5)
    assert "torchvision" not in sys.modules and type(encoder.processor) is type(processor)


def test_by_default_a_text_is_the_mean_of_its_tokens_and_padding_is_ignored(tmp_path):
    folder = save_bert(tmp_path / "m")
    encoder = load_encoder(str(folder), "text")
    alone = encoder.encode(["a red kite"])
    assert encoder.pooling == "mean" and alone.shape == (1, 32) and alone.dtype == np.float32
    hidden = tokens_of(hf.BertModel.from_pretrained(folder), "a red kite")
    assert len(hidden) == 5
    np.testing.assert_allclose(alone[0], hidden.mean(axis=0), atol=1e-5)
    batch = encoder.encode(["a red kite", "the blue sea in the red kites in the sky"])
    np.testing.assert_allclose(batch[0], alone[0], atol=1e-5)
    assert np.abs(batch[1] - batch[0]).max() > 1e-3


def test_a_text_longer_than_the_model_is_cut(tmp_path):
    encoder = load_encoder(str(save_bert(tmp_path / "m")), "text")
    assert encoder.tokens.max_tokens == 16
    latents = encoder.encode(["red " * 100, "red " * 14])
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-5)


@pytest.mark.parametrize(
    ("modes", "token"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 0),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, -1),
        ({"pooling_mode": "cls"}, 0),
        ({"pooling_mode": "lasttoken"}, -1),
    ],
)
def test_the_pooling_that_sentence_transformers_saved_is_used(modes, token, tmp_path):
    folder = save_bert(tmp_path / "m")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    latents = load_encoder(str(folder), "text").encode(["a red kite", "the blue sea in the sky"])
    hidden = tokens_of(hf.BertModel.from_pretrained(folder), "a red kite")
    np.testing.assert_allclose(latents[0], hidden[token], atol=1e-5)


def test_a_bge_folder_is_pooled_by_its_first_token_and_an_e5_folder_gets_its_prefix(tmp_path):
    bge, e5 = (save_bert(tmp_path / name) for name in ("bge-small-x", "e5-small-x"))
    model = hf.BertModel.from_pretrained(bge)
    got = [load_encoder(str(folder), "text").encode(["a red kite", "the sea in the sky"])[0] for folder in (bge, e5)]
    np.testing.assert_allclose(got[0], tokens_of(model, "a red kite")[0], atol=1e-5)
    np.testing.assert_allclose(got[1], tokens_of(model, "query: a red kite").mean(axis=0), atol=1e-5)
    assert load_encoder(str(e5), "text").fingerprint["prefix"] == "query: "


@pytest.mark.parametrize(
    "model",
    [
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)),
        lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=16, **IDS)),
        lambda: hf.Olmo2Model(hf.Olmo2Config(**TEXT)),
    ],
)
def test_a_decoder_is_pooled_by_its_last_token_wherever_the_padding_is(model, tmp_path):
    folder = save(tmp_path / "m", model, wordpiece("$A", pad_token=None, eos_token="[SEP]", padding_side="left"))
    encoder = load_encoder(str(folder), "text")
    latents = encoder.encode(["a red kite", "the blue sea in the sky"])
    with torch.inference_mode():
        direct = hf.AutoModel.from_pretrained(folder)(torch.tensor([[4, 5, 6]])).last_hidden_state[0]
    assert encoder.pooling == "last"
    np.testing.assert_allclose(latents[0], direct[-1].numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["a red kite"])[0], latents[0], atol=1e-5)


def test_a_decoder_with_the_name_of_an_encoder_is_pooled_as_a_decoder(tmp_path):
    ends = {"pad_token": None, "eos_token": "[SEP]"}
    config = hf.MistralConfig(**TEXT, num_key_value_heads=2)
    folder = save(tmp_path / "bge-en-icl", lambda: hf.MistralModel(config), wordpiece("$A", **ends))
    encoder = load_encoder(str(folder), "text")
    latents = encoder.encode(["a red kite", "a blue sea"])
    assert encoder.pooling == "last" and not np.allclose(latents[0], latents[1])


def test_what_was_tuned_for_instructions_gets_no_prefix(tmp_path):
    for name, prefix in (("e5-large-instruct", ""), ("e5-large-v2", "query: ")):
        folder = save_bert(tmp_path / name)
        assert load_encoder(str(folder), "text").fingerprint["prefix"] == prefix


@pytest.mark.parametrize("name", SIAMESE)
def test_of_a_two_tower_model_texts_see_the_text_tower_only(name, tmp_path):
    folder = save(tmp_path / "m", SIAMESE[name], wordpiece(eos_token="[SEP]"))
    encoder = load_encoder(str(folder), "text")
    latents = encoder.encode(["a red kite", "the blue sea in the sky"])
    assert latents.shape == (2, 16)
    padding = {"padding": "max_length", "max_length": 16} if name == "siglip" else {}  # as SigLIP was trained
    with torch.inference_mode():
        model = type(SIAMESE[name]()).from_pretrained(folder).text_model.eval()
        tokens = wordpiece()(["a red kite"], return_tensors="pt", **padding)
        if name == "siglip":  # its published tokenizers give no mask
            del tokens["attention_mask"]
        output = model(**tokens)
    np.testing.assert_allclose(latents[0], output.pooler_output[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["a red kite"])[0], latents[0], atol=1e-5)


@pytest.mark.parametrize("name", [*IMAGE, "bert"])
def test_a_fingerprint_is_the_same_on_every_load_and_in_every_place(name, tmp_path):
    kind = "text" if name == "bert" else "image"
    folder = save_image(tmp_path / "m", name) if kind == "image" else save_bert(tmp_path / "m")
    copy = shutil.copytree(folder, tmp_path / "bge-and-e5-small" / "m")
    assert changed(folder, folder, kind) == changed(folder, copy, kind) == set()


@pytest.mark.parametrize(
    ("file", "edit", "field"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}, "preprocessing.image_mean (was [0.5, 0.5, 0.5]"),
        (
            "preprocessor_config.json",
            {"size": {"height": 16, "width": 32}},
            "preprocessing.size.height (was 32, is 16)",
        ),
        ("preprocessor_config.json", {"resample": 3}, "preprocessing.resample (was 2, is 3)"),
        ("tokenizer.json", {"normalizer": None}, "preprocessing.normalizer (was {"),
        ("config.json", {"hidden_act": "relu"}, "config.hidden_act (was 'gelu', is 'relu')"),
        ("config.json", {"layer_norm_eps": 1e-5}, "config.layer_norm_eps (was 1e-12, is 1e-05)"),
    ],
)
def test_one_changed_setting_changes_the_field_that_names_it(file, edit, field, tmp_path):
    kind = "image" if file == "preprocessor_config.json" else "text"
    folder = (save_image if kind == "image" else save_bert)(tmp_path / "m")
    other = shutil.copytree(folder, tmp_path / "other" / "m")
    edit_json(other / file, **edit)
    assert changed(folder, other, kind) == {field.split(".")[0]}
    old, new = (load_encoder(str(place), kind).fingerprint for place in (folder, other))
    assert json.loads(json.dumps(old)) == old and field in difference(old, new)


def test_one_changed_weight_of_the_tower_in_use_changes_the_weights_and_another_name_the_name(tmp_path):
    folder = save_image(tmp_path / "m", "clip")
    weights = load_file(folder / "model.safetensors")
    for tower, fields in (("vision_model", {"weights"}), ("text_model", set())):
        other = shutil.copytree(folder, tmp_path / tower / "m")
        key = f"{tower}.embeddings.position_embedding.weight"
        one = torch.zeros_like(weights[key]).index_fill_(0, torch.tensor([0]), 1e-3)
        save_file({**weights, key: weights[key] + one}, other / "model.safetensors")
        assert changed(folder, other, "image") == fields
    assert changed(folder, shutil.copytree(folder, tmp_path / "n"), "image") == {"name"}


def test_a_checkpoint_without_a_pooler_has_one_fingerprint(tmp_path):
    image = save(tmp_path / "i", lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIGHT)), IMAGE["vit"][1]())
    text = save(tmp_path / "t", lambda: hf.BertForMaskedLM(hf.BertConfig(**TEXT)), wordpiece())
    assert changed(image, image, "image") == changed(text, text, "text") == set()


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path):
    folder = save_image(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if "layernorm" in key)
    save_file({key: value for key, value in weights.items() if key != gone}, folder / "model.safetensors")
    with pytest.raises(EncoderError, match=r"lacks 1 weights of ViTModel, such as .*layernorm.*: they would be random"):
        load_encoder(str(folder), "image")
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(EncoderError, match="could not load it"):
        load_encoder(str(folder), "image")


@pytest.mark.parametrize("model_type", ["vit", "mine"])
def test_the_code_of_a_model_folder_never_runs(model_type, tmp_path):
    folder, sentinel = save_image(tmp_path / "m"), tmp_path / "sentinel"
    (folder / "evil.py").write_text(
        f"open({str(sentinel)!r}, 'w')\nfrom transformers import *\n"
        "class Config(ViTConfig): pass\nclass Model(ViTModel): pass\nclass Processor(ViTImageProcessorPil): pass\n"
    )
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoImageProcessor": "evil.Processor"}
    edit_json(folder / "config.json", auto_map=code, model_type=model_type)
    edit_json(folder / "preprocessor_config.json", auto_map=code)
    if model_type == "vit":
        assert load_encoder(str(folder), "image").encode(pictures()).shape == (3, 32)
    else:
        with pytest.raises(EncoderError, match="could not load it"):
            load_encoder(str(folder), "image")
    assert not sentinel.exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_refused_and_never_opened(tmp_path):
    folder, sentinel = save_image(tmp_path / "m"), tmp_path / "sentinel"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "evil": Evil(sentinel)}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="safetensors"):
        load_encoder(str(folder), "image")
    assert not sentinel.exists()


def test_a_folder_of_the_wrong_modality_says_what_it_lacks(tmp_path):
    image, text = save_image(tmp_path / "i"), save_bert(tmp_path / "t")
    with pytest.raises(EncoderError, match="i has no tokenizer, so it takes no texts"):
        load_encoder(str(image), "text")
    with pytest.raises(EncoderError, match="t has no preprocessor_config.json, which says how pictures are prepared"):
        load_encoder(str(text), "image")


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_an_unknown_name_says_what_an_encoder_can_be_and_what_may_have_been_meant(kind):
    with pytest.raises(EncoderError, match=r"no encoder 'no-such-encoder': no such folder in /.*hog, minilm,.* timm:"):
        load_encoder("no-such-encoder", kind)
    for wrong, right in (("hgo", "hog"), ("minlm", "minilm")):
        with pytest.raises(EncoderError, match=rf"no encoder {wrong!r}; did you mean {right!r}\?"):
            load_encoder(wrong, kind)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_what_a_version_or_a_machine_writes_is_no_part_of_a_fingerprint(file, tmp_path):
    folder = save_image(tmp_path / "m")
    other = shutil.copytree(folder, tmp_path / "other" / "m")
    edit_json(
        other / file, transformers_version="9.9", _name_or_path="/home/x", processor_class="X", id2label={"0": "x"}
    )
    edit_json(other / file, **({"torch_dtype": "float16"} if file == "config.json" else {"new_setting": None}))
    assert changed(folder, other, "image") == set()


def test_renamed_weights_keep_the_hash_and_exchanged_ones_change_it():
    def model(names, order=(0, 1, 2)):
        torch.manual_seed(0)
        parts = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)]
        return torch.nn.ModuleDict({names[i]: parts[i] for i in order})

    first = hash_weights(model("abc"))
    assert first == hash_weights(model("xyz")) == hash_weights(model("abc", (2, 0, 1)))
    exchanged = model("abc")
    exchanged["a"], exchanged["b"] = exchanged["b"], exchanged["a"]
    assert hash_weights(exchanged) != first
    positions = model("abc")
    positions.register_buffer("position_ids", torch.arange(5))
    assert hash_weights(positions) == first
    positions.register_buffer("running_mean", torch.zeros(5))
    assert hash_weights(positions) != first


def test_an_exchange_of_two_layers_in_a_folder_changes_the_weights(tmp_path):
    folder = save_bert(tmp_path / "m")
    other = shutil.copytree(folder, tmp_path / "other" / "m")
    weights = load_file(folder / "model.safetensors")
    one, two = (f"encoder.layer.{n}.attention.self.query.weight" for n in (0, 1))
    save_file({**weights, one: weights[two].clone(), two: weights[one].clone()}, other / "model.safetensors")
    assert changed(folder, other, "text") == {"weights"}


def test_precision_is_float32_on_a_cpu_and_what_is_asked_for_is_recorded(tmp_path):
    folder = str(save_image(tmp_path / "m"))
    default, half = load_encoder(folder, "image"), load_encoder(folder, "image", precision="bfloat16")
    assert default.fingerprint["dtype"] == "float32" and default.model.dtype == torch.float32
    assert half.fingerprint["dtype"] == "bfloat16" and half.model.dtype == torch.bfloat16
    one, two = default.encode(pictures()), half.encode(pictures())
    assert two.dtype == np.float32 and 0 < np.abs(one - two).max() < 0.1 * np.abs(one).max()
    assert difference(default.fingerprint, half.fingerprint) == "dtype (was 'float32', is 'bfloat16')"
    with pytest.raises(EncoderError, match="no precision 'bf16'; found: float32, bfloat16, float16"):
        load_encoder(folder, "image", precision="bf16")


def test_dinov3_needs_no_torchvision(tmp_path):
    config = hf.DINOv3ViTConfig(**SIGHT, num_register_tokens=2)
    folder = save(tmp_path / "m", lambda: hf.DINOv3ViTModel(config), hf.ViTImageProcessorPil(size=SQUARE))
    edit_json(folder / "preprocessor_config.json", image_processor_type="DINOv3ViTImageProcessorFast")
    encoder = load_encoder(str(folder), "image", pooling="cls+mean")
    pixels = [np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) / 127.5 - 1 for picture in pictures()]
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32))
        hidden = hf.DINOv3ViTModel.from_pretrained(folder).eval()(batch).last_hidden_state.numpy()
    expected = np.concatenate([hidden[:, 0], hidden[:, 3:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_a_gpu_computes_in_what_it_is_able_to(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(None, torch.device("cuda")) == precision
    assert choose_precision("float32", torch.device("cuda")) == torch.float32


def test_a_pooling_can_be_chosen(tmp_path):
    folder, text = str(save_image(tmp_path / "m", "dinov2")), str(save_bert(tmp_path / "bge-small-x"))
    both = load_encoder(folder, "image", pooling="cls+mean")
    batch = IMAGE["dinov2"][1]()(images=pictures(), return_tensors="pt")
    with torch.inference_mode():
        hidden = hf.Dinov2Model.from_pretrained(folder).eval()(**batch).last_hidden_state.numpy()
    expected = np.concatenate([hidden[:, 0], hidden[:, 1:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(both.encode(pictures()), expected, atol=1e-5)
    assert both.fingerprint["pooling"] == "cls+mean"
    with pytest.warns(UserWarning, match="bge-small-x was made for pooling 'cls', and is used with 'mean'"):
        mean = load_encoder(text, "text", pooling="mean")
    hidden = tokens_of(hf.BertModel.from_pretrained(text), "a red kite")
    np.testing.assert_allclose(mean.encode(["a red kite"])[0], hidden.mean(axis=0), atol=1e-5)
    with pytest.raises(EncoderError, match="bge-small-x: no pooling 'max'; found: cls, mean"):
        load_encoder(text, "text", pooling="max")


@pytest.mark.parametrize("name", ["vit", "dinov2", "clip", "siglip", "mae"])
def test_a_layer_of_an_image_model_is_what_its_class_shows(name, tmp_path):
    folder = save_image(tmp_path / "m", name)
    with pytest.warns(UserWarning, match="made for pooling .* and is used with 'mean@-2'"):
        encoder = load_encoder(str(folder), "image", pooling="mean@-2")
    assert encoder.fingerprint["pooling"] == "mean@-2"
    settings = {"mask_ratio": 0.0} if name == "mae" else {}
    model = type(IMAGE[name][0]()).from_pretrained(folder, **settings).eval()
    with torch.inference_mode():
        batch = IMAGE[name][1]()(images=pictures(), return_tensors="pt")
        states = getattr(model, "vision_model", model)(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 3, "two layers, and what enters the first"
    expected = states[1][:, encoder.special :].mean(dim=1).numpy()
    np.testing.assert_allclose(encoder.encode(pictures()), expected, atol=1e-5)


@pytest.mark.parametrize(("pooling", "layer"), [("mean@-2", 1), ("mean@0", 0), ("mean@2", 2)])
def test_a_layer_of_a_text_model_is_what_its_class_shows(pooling, layer, tmp_path):
    folder = save_bert(tmp_path / "m")
    encoder = load_encoder(str(folder), "text", pooling=pooling)
    model = hf.BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        batch = wordpiece()(["a red kite"], return_tensors="pt")
        expected = model(**batch, output_hidden_states=True).hidden_states[layer][0].mean(dim=0).numpy()
    got = encoder.encode(["a red kite", "the blue sea in the red kites in the sky"])
    np.testing.assert_allclose(got[0], expected, atol=1e-5)
    again = load_encoder(encoder.source, "text", pooling=encoder.fingerprint["pooling"])
    np.testing.assert_array_equal(again.encode(["a red kite"]), encoder.encode(["a red kite"]))


def test_layers_of_a_text_model_stand_side_by_side(tmp_path):
    folder = str(save_bert(tmp_path / "m"))
    texts = ["a red kite", "the blue sea in the red kites in the sky"]
    got = load_encoder(folder, "text", pooling="mean+mean@1+cls@0").encode(texts)
    alone = [load_encoder(folder, "text", pooling=part).encode(texts) for part in ("mean", "mean@1", "cls@0")]
    np.testing.assert_array_equal(got, np.concatenate(alone, axis=1))


def test_a_layer_that_a_model_does_not_have_is_told(tmp_path):
    encoder = load_encoder(str(save_bert(tmp_path / "m")), "text", pooling="mean@-7")
    with pytest.raises(EncoderError, match="no layer -7: it has 2"):
        encoder.encode(["a red kite"])


def test_tokens_are_counted_as_the_model_sees_them(tmp_path):
    encoder = load_encoder(str(save_bert(tmp_path / "e5-small-x")), "text")
    assert encoder.lengths(["a", "a red kite", "red " * 100]) == [5, 7, 16] and encoder.lengths([]) == []


def test_of_an_encoder_decoder_texts_see_the_encoder(tmp_path):
    config = hf.T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
    folder = save(tmp_path / "m", lambda: hf.T5ForConditionalGeneration(config), wordpiece())
    encoder = load_encoder(str(folder), "text")
    with torch.inference_mode():
        model = hf.T5EncoderModel.from_pretrained(folder).eval()
        hidden = model(**wordpiece()(["a red kite"], return_tensors="pt")).last_hidden_state[0]
    latents = encoder.encode(["a red kite", "the blue sea in the sky"])
    np.testing.assert_allclose(latents[0], hidden.mean(dim=0).numpy(), atol=1e-5)


def test_a_model_without_the_part_that_is_asked_for_says_so(tmp_path):
    folder = save(tmp_path / "m", SIAMESE["clip"], wordpiece(), IMAGE["clip"][1]())
    with pytest.raises(EncoderError, match="has no part for audio items; found: image, text"):
        load_encoder(str(folder), "audio")
    with pytest.raises(EncoderError, match="is a folder, which has no revision 'main'; only hub ids have revisions"):
        load_encoder(f"{folder}@main", "image")


HUB = """
import json, sys, warnings
warnings.simplefilter("error")
from fusemix.encoders import load_encoder
found = {}
for spec in sys.argv[1:]:
    try:
        encoder = load_encoder(spec, "text")
    except Warning as warned:
        found[spec] = str(warned)
        continue
    facts = encoder.fingerprint
    latents = encoder.encode(["a red kite"]).tolist()
    found[spec] = facts["name"], facts["revision"], encoder.source, facts["pooling"], latents
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What one process finds in a cache with three repositories, and the folder of their model."""
    place = tmp_path_factory.mktemp("cache")
    folder, (old, new) = save_bert(place / "m"), ("1" * 40, "2" * 40)

    def repository(name, *snapshots):
        """Lay out snapshots, the modes of their pooling by commit, as the cache does; the last one is main."""
        path = place / "hub" / f"models--org--{name}"
        (path / "refs").mkdir(parents=True)
        for commit, modes in snapshots:
            snapshot = shutil.copytree(folder, path / "snapshots" / commit)
            (path / "refs" / "main").write_text(commit)
            if modes:
                (snapshot / "1_Pooling").mkdir()
                (snapshot / "1_Pooling" / "config.json").write_text(json.dumps(modes))
        return path

    repository("unknown", (old, None))
    missing = repository("without", (old, None)) / ".no_exist" / old / "modules.json"
    missing.parent.mkdir(parents=True)
    missing.touch()  # how the cache remembers it
    name = repository("name", (old, {"pooling_mode": "cls"}), (new, {"pooling_mode": "lasttoken"}))
    (name / "refs" / "v1").write_text(old)
    environment = {**os.environ, "HF_HUB_CACHE": str(place / "hub")}
    specs = ["org/unknown", "org/without", "org/name", "org/name@v1", f"org/name@{old}"]
    done = subprocess.run([sys.executable, "-c", HUB, *specs], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_pooling_that_could_not_be_looked_up_is_warned_of(hub):
    _, found = hub
    assert "it is not known whether org/unknown has a modules.json" in found["org/unknown"]
    assert found["org/without"][3] == "mean"


def test_a_hub_id_has_a_revision_and_its_files_are_looked_up_offline(hub):
    (folder, found), (old, new) = hub, ("1" * 40, "2" * 40)
    hidden = tokens_of(hf.BertModel.from_pretrained(folder), "a red kite")
    for spec, commit, pooling, token in (
        ("org/name", new, "last", -1), ("org/name@v1", old, "cls", 0), (f"org/name@{old}", old, "cls", 0)
    ):  # fmt: skip
        assert found[spec][:4] == ["org/name", commit, f"org/name@{commit}", pooling]
        np.testing.assert_allclose(found[spec][4][0], hidden[token], atol=1e-5)
