"""Callables, the two offline encoders, and what a saved model does with an encoder that is code."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fusemix as fm
from conftest import encode_image, encode_text
from fusemix.encoders import Encoder, encode_batch, load_encoder, runs_code
from fusemix.errors import EncoderError, MismatchError

LENGTHS = "def lengths(texts):\n    return [[len(text), 1.0] for text in texts]\n"
TEXTS = ["a red kite", "", "sea"]
EXPECTED = [[10, 1], [0, 1], [3, 1]]


def lengths(texts):
    return [[len(text), 1] for text in texts]


class Lengths:
    batch_size = 7

    def __call__(self, texts):
        return np.array(lengths(texts))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(2))

    def forward(self, texts):
        return torch.tensor(lengths(texts)) * self.scale


def file(folder, content, name="encoders.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return str(folder / name)


def drawing(size=(64, 64), box=(10, 10, 30, 50)):
    image = Image.new("RGB", size, "white")
    image.paste("black", box)
    return image


@pytest.mark.parametrize(
    "function",
    [
        lengths,
        lambda texts: np.array(lengths(texts), dtype=np.float64),
        Lengths(),
        lambda texts: torch.tensor(lengths(texts), dtype=torch.bfloat16),
        Network(),
    ],
    ids=["function", "lambda", "instance", "tensor", "network"],
)
def test_any_callable_on_a_list_of_items_is_an_encoder(function):
    encoder = load_encoder(function, "text")
    assert isinstance(encoder, Encoder) and encoder.takes == "any"
    latents = encode_batch(encoder, TEXTS)
    assert latents.dtype == np.float32 and latents.tolist() == EXPECTED
    assert encoder.batch_size == getattr(function, "batch_size", 32)
    assert len(encoder.fingerprint["code"]) == 16 and encoder.fingerprint["name"].startswith("test_encoders:")


def test_an_encoder_is_passed_through():
    encoder = load_encoder(lengths, "text")
    assert load_encoder(encoder, "image") is encoder


@pytest.mark.parametrize(
    "definition", [LENGTHS, LENGTHS + "class L:\n    __call__ = lambda s, t: lengths(t)\nlengths_ = L()\n"]
)
def test_a_file_and_its_function_are_an_encoder_whose_fingerprint_follows_the_file(definition, tmp_path):
    path = file(tmp_path, definition)
    name = "lengths_" if "class" in definition else "lengths"
    first = load_encoder(f"{path}:{name}", "text")
    assert encode_batch(first, TEXTS).tolist() == EXPECTED and first.source == f"{path}:{name}"
    assert load_encoder(f"{path}:{name}", "text").fingerprint == first.fingerprint
    file(tmp_path, definition.replace("1.0", "1.00"))
    after = load_encoder(f"{path}:{name}", "text").fingerprint
    assert {key for key in after if after[key] != first.fingerprint[key]} == {"code"}


def test_a_file_of_the_same_name_in_another_folder_or_library_is_not_taken_for_it(tmp_path):
    code = LENGTHS + "class L:\n    def __call__(self, texts): return lengths(texts)\nlook = L()\n"
    paths = [file(tmp_path / "a", code), file(tmp_path / "b", code + "# other\n"), file(tmp_path, code, "json.py")]
    hashes = [load_encoder(f"{path}:look", "text").fingerprint["code"] for path in paths]
    assert hashes[0] != hashes[1] and hashes[0] == hashes[2]


def test_a_module_is_found_in_the_current_folder(tmp_path, monkeypatch):
    file(tmp_path, LENGTHS, "encoders_of_this_folder.py")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    encoder = load_encoder("encoders_of_this_folder:lengths", "text")
    assert encode_batch(encoder, TEXTS).tolist() == EXPECTED and sys.path == before
    assert encoder.fingerprint["name"] == "encoders_of_this_folder:lengths"


def test_a_class_defined_at_a_prompt_is_an_encoder_too():
    code = (
        "from fusemix.encoders import load_encoder\n"
        "class Prompt:\n    def __call__(self, texts): return [[len(t)] for t in texts]\n"
        "encoder = load_encoder(Prompt(), 'text')\n"
        "print(encoder.fingerprint['code'], encoder.encode(['abc']).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "unknown [[3.0]]\n"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:f", r"no file nowhere.py \(looked in "),
        ("no_such_module:f", "no module 'no_such_module'.*give module:function or path/to/file.py:function"),
        (":f", "no module ''; give module:function"),
        (".here:f", "no module '.here'; give module:function"),
        ("FILE:length", "has no function 'length'; found: lengths; did you mean 'lengths'"),
        ("FILE:", "has no function ''; found: lengths"),
        ("FILE:number", "is a int; wanted a function"),
    ],
)
def test_code_that_is_not_there_is_named(spec, message, tmp_path):
    path = file(tmp_path, LENGTHS + "number = 3\n")
    with pytest.raises(EncoderError, match=message):
        load_encoder(spec.replace("FILE", path), "text")


@pytest.mark.parametrize(("name", "kind"), [("hog", "text"), ("minilm", "image"), ("hog", "file")])
def test_an_encoder_for_items_of_another_kind_is_refused(name, kind):
    with pytest.raises(EncoderError, match=f"the encoder '{name}' takes .* items, but these are {kind} items"):
        load_encoder(name, kind)


def test_files_need_a_function():
    with pytest.raises(EncoderError, match="no encoder 'some/model' for file items; give module:function"):
        load_encoder("some/model", "file")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([[1.0, 2.0]], r"wanted an array of shape \(3, D\) for 3 items, got \(1, 2\)"),
        ([1.0, 2.0, 3.0], r"got \(3,\)"),
        (np.zeros((3, 2, 2)), r"got \(3, 2, 2\)"),
        ([[1.0], [1.0, 2.0], [1.0]], "wanted 3 rows of numbers for 3 items; the rows have 1 and 2 numbers"),
        (["a kite", "a sea", "a sky"], "wanted 3 rows of numbers for 3 items; could not convert string to float"),
        (None, r"got \(\)"),
        ({"latents": 1}, "wanted 3 rows of numbers for 3 items"),
    ],
)
def test_what_is_not_one_row_of_numbers_per_item_is_refused(result, message):
    with pytest.raises(EncoderError, match=f"test_encoders:.*lambda.*{message}"):
        encode_batch(load_encoder(lambda items: result, "text"), TEXTS)


def test_only_specs_that_name_code_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:name").mkdir()
    assert runs_code("module:function") and runs_code("file.py:function")
    assert not any(runs_code(spec) for spec in ("hog", "minilm", "org/model", "odd:name"))


def test_hog_describes_pictures_of_any_size_and_tells_them_apart():
    encoder = load_encoder("hog", "image")
    sizes = [(64, 64), (1, 1), (300, 20), (7, 500)]
    latents = encode_batch(encoder, [drawing(size, (0, 0, 1, 1)) for size in sizes])
    assert len(latents) == 4 and latents.shape[1] > 100 and np.isfinite(latents).all()
    pair = [drawing(), drawing(box=(40, 5, 60, 20))]
    one, two = encode_batch(encoder, pair)
    assert np.array_equal(one, encoder.encode(pair[:1])[0]) and np.abs(one - two).max() > 0.1
    assert encoder.fingerprint == load_encoder("hog", "image").fingerprint and encoder.source == "hog"


def test_minilm_puts_similar_sentences_close():
    encoder = load_encoder("minilm", "text")
    latents = encode_batch(encoder, ["A cat sleeps on the sofa.", "A kitten naps on a couch.", "Interest rates rose."])
    assert latents.shape == (3, 3 * 384) and encoder.source == encoder.fingerprint["name"] == "minilm"
    last = load_encoder("minilm", "text", pooling="mean").encode(["Interest rates rose."])[0]
    np.testing.assert_allclose(latents[2, :384], last, atol=1e-5)
    unit = latents / np.linalg.norm(latents, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[0, 1] > 0.5 > 0.3 > max(cosine[0, 2], cosine[1, 2])
    np.testing.assert_allclose(encoder.encode(["Interest rates rose."])[0], latents[2], atol=1e-5)


def test_a_saved_model_never_runs_code_by_itself(world, tmp_path):
    ran = tmp_path / "ran"
    colours = "import numpy as np\ndef colours(images):\n    return [np.asarray(i).mean(axis=(0, 1)) for i in images]\n"
    path = file(tmp_path, f"open({str(ran)!r}, 'w').close()\n{colours}")
    pairs = fm.read_pairs(world / "table.csv", image="photo", text="title")
    latents = fm.extract(pairs, image=f"{path}:colours", text=encode_text, out=tmp_path / "latents", dtype="float32")
    fm.FuseMix(dim=8, epochs=2).fit(latents.only("train")).save(tmp_path / "model")
    ran.unlink()
    model = fm.FuseMix.load(tmp_path / "model")
    photo = world / latents["image"].ids[0]
    with pytest.raises(EncoderError, match="never runs code by itself") as caught:
        model.embed([photo])
    wanted = f"search --image {path}:colours, serve --encoder image={path}:colours, or use_encoder"
    assert not ran.exists() and wanted in str(caught.value)
    embedded = model.use_encoder("image", f"{path}:colours").embed([photo])
    assert ran.exists()
    np.testing.assert_allclose(embedded, model.embed_latents("image", latents["image"].latents[:1]), atol=1e-5)
    with pytest.raises(MismatchError, match=r"not the encoder of 'image' .*: (code|name) \(was "):
        model.use_encoder("image", encode_image)
    file(tmp_path, colours + "# edited\n")
    with pytest.raises(MismatchError, match=r"not the encoder of 'image' .*: code \(was "):
        model.use_encoder("image", f"{path}:colours")
