"""Thirty and more changes of a single field, each in a real model folder or option: extraction refuses and names it."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import test_encoders_audio
from fusemix.data.pairs import read_pairs
from fusemix.errors import MismatchError
from fusemix.extraction import extract
from test_encoders_audio import sound
from test_encoders_huggingface import edit_json, pictures, save_image
from test_encoders_sentence import dense, save_sentence


def setting(file, field, value):
    """Change one setting; "a.b" is b within a."""

    def change(folder):
        path, (*outer, last) = folder / file, field.split(".")
        whole = json.loads(path.read_text())
        place = whole
        for key in outer:
            place = place[key]
        assert last not in place or place[last] != value
        place[last] = value
        edit_json(path, **whole)

    return change


def weight(file, key):
    def change(folder):
        weights = load_file(folder / file)
        weights[key] = weights[key] + torch.zeros_like(weights[key]).flatten().index_fill_(
            0, torch.tensor([0]), 1e-3
        ).reshape(weights[key].shape)
        save_file(weights, folder / file, {"format": "pt"})

    return change


PICTURE, SETTINGS, TOKENS = "preprocessor_config.json", "config.json", "tokenizer.json"
# By kind of item: what is changed, and the field that the refusal must name.
IN_THE_FOLDER = {
    "image": [
        (setting(PICTURE, "image_mean", [0.1, 0.2, 0.3]), "encoder.preprocessing.image_mean"),
        (setting(PICTURE, "image_std", [0.4, 0.5, 0.5]), "encoder.preprocessing.image_std"),
        (setting(PICTURE, "resample", 3), "encoder.preprocessing.resample"),
        (setting(PICTURE, "size.height", 40), "encoder.preprocessing.size.height"),
        (setting(PICTURE, "size.width", 40), "encoder.preprocessing.size.width"),
        (setting(PICTURE, "do_resize", False), "encoder.preprocessing.do_resize"),
        (setting(PICTURE, "do_rescale", False), "encoder.preprocessing.do_rescale"),
        (setting(PICTURE, "do_normalize", False), "encoder.preprocessing.do_normalize"),
        (setting(PICTURE, "rescale_factor", 0.004), "encoder.preprocessing.rescale_factor"),
        (setting(PICTURE, "do_convert_rgb", False), "encoder.preprocessing.do_convert_rgb"),
        (setting(SETTINGS, "hidden_act", "relu"), "encoder.config.hidden_act"),
        (setting(SETTINGS, "layer_norm_eps", 1e-5), "encoder.config.layer_norm_eps"),
        (setting(SETTINGS, "num_attention_heads", 2), "encoder.config.num_attention_heads"),
        (weight("model.safetensors", "layernorm.weight"), "encoder.weights"),
    ],
    "text": [
        (setting(TOKENS, "normalizer.lowercase", False), "encoder.preprocessing.normalizer"),
        (setting(TOKENS, "normalizer.strip_accents", False), "encoder.preprocessing.normalizer"),
        (setting(TOKENS, "pre_tokenizer", None), "encoder.preprocessing.pre_tokenizer"),
        (setting(TOKENS, "post_processor", None), "encoder.preprocessing.post_processor"),
        (setting(TOKENS, "model.max_input_chars_per_word", 4), "encoder.preprocessing.model"),
        (setting("sentence_bert_config.json", "max_seq_length", 8), "encoder.max_tokens"),
        (setting("sentence_bert_config.json", "do_lower_case", True), "encoder.lower"),
        (setting("1_Pooling/config.json", "pooling_mode", "cls"), "encoder.pooling"),
        (setting("2_Dense/config.json", "activation_function", "torch.nn.modules.activation.ReLU"), "encoder.layers"),
        (weight("2_Dense/model.safetensors", "linear.weight"), "encoder.layers"),
        (setting(SETTINGS, "hidden_act", "relu"), "encoder.config.hidden_act"),
        (weight("model.safetensors", "embeddings.LayerNorm.weight"), "encoder.weights"),
    ],
    "audio": [
        (
            setting(PICTURE, "sampling_rate", 8000),
            "encoder.preprocessing.n_samples",
        ),  # what follows from it comes first
        (setting(PICTURE, "hop_length", 80), "encoder.preprocessing.hop_length"),
        (setting(PICTURE, "n_fft", 256), "encoder.preprocessing.n_fft"),
        (setting(PICTURE, "chunk_length", 1), "encoder.preprocessing.chunk_length"),
        (setting(PICTURE, "padding_value", 0.1), "encoder.preprocessing.padding_value"),
        (setting(PICTURE, "dither", 0.1), "encoder.preprocessing.dither"),
        (setting(SETTINGS, "activation_function", "relu"), "encoder.config.activation_function"),
    ],
}
IN_THE_CALL = {
    "image": [
        ({"pooling": {"x": "mean"}}, "encoder.pooling"),
        ({"precision": "bfloat16"}, "encoder.dtype"),
        ({"dtype": "float32"}, "dtype"),
        ({"shard_items": 100}, "shard_items"),
        ({"decode": {"x": Path}}, "decode"),
    ],
    "text": [({"pooling": {"x": "cls"}}, "encoder.pooling")],
    "audio": [({"pooling": {"x": "cls"}}, "encoder.pooling")],
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """For each kind a model folder, pairs, and the folder of their latents."""
    root = tmp_path_factory.mktemp("fingerprints")
    for i, picture in enumerate(pictures()):
        picture.save(root / f"{i}.png")
        soundfile.write(root / f"{i}.wav", sound(1 + i / 10).samples, 16000)
    for kind, cells in (("image", "{}.png"), ("text", "a red kite {}"), ("audio", "{}.wav")):
        lines = [f"{cells.format(i)},{i}" for i in range(3)]
        (root / f"{kind}.csv").write_text("\n".join(["x,y", *lines]) + "\n")
    folders = {name: root / name / "m" for name in IN_THE_FOLDER}
    save_image(folders["image"])
    save_sentence(folders["text"], dense())
    test_encoders_audio.save(folders["audio"], "whisper")
    found = {}
    for kind, folder in folders.items():
        pairs = read_pairs(root / f"{kind}.csv", x="x", y="y")
        found[kind] = folder, pairs, root / f"{kind}-latents"
        run(*found[kind])
    return found


def run(folder, pairs, out, **options):
    return extract(pairs, out=out, x=str(folder), y=digits, **options)


def digits(texts):
    return [[int(text), 1] for text in texts]


@pytest.mark.parametrize("kind", IN_THE_FOLDER)
def test_nothing_changed_is_no_mismatch(kind, worlds, tmp_path):
    folder, pairs, out = worlds[kind]
    assert len(run(shutil.copytree(folder, tmp_path / "m"), pairs, out)) == 3


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [(kind, *case) for kind, cases in IN_THE_FOLDER.items() for case in cases],
)
def test_a_changed_field_of_a_model_folder_is_refused_by_its_name(kind, change, field, worlds, tmp_path):
    folder, pairs, out = worlds[kind]
    other = shutil.copytree(folder, tmp_path / "m")
    change(other)
    with pytest.raises(MismatchError) as caught:
        run(other, pairs, out)
    assert f"holds latents made with another {field}" in str(caught.value)


@pytest.mark.filterwarnings("ignore:m was made for pooling")
@pytest.mark.parametrize(
    ("kind", "options", "field"), [(kind, *case) for kind, cases in IN_THE_CALL.items() for case in cases]
)
def test_a_changed_option_is_refused_by_its_name(kind, options, field, worlds):
    with pytest.raises(MismatchError, match=f"holds latents made with another {field}"):
        run(*worlds[kind], **options)


def test_they_are_thirty_at_least():
    found = [field for cases in (*IN_THE_FOLDER.values(), *IN_THE_CALL.values()) for _, field in cases]
    assert len(found) >= 30
