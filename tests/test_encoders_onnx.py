"""ONNX files through onnxruntime: tiny random models, exported, compared with the torch models that they come from."""

import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers as hf

from fusemix.encoders import encode_batch, load_encoder
from fusemix.encoders.onnx_models import OnnxEncoder
from fusemix.errors import EncoderError, MissingExtraError
from test_encoders_huggingface import IDS, IMAGE, LAYERS, edit_json, pictures, save, save_bert, wordpiece
from test_encoders_sentence import dense, save_sentence

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = ["a red kite", "blue sea in the sky in the sea", "", "kite"]
ROW = {0: "batch"}
TOKENS = {0: "batch", 1: "tokens"}


class Outputs(torch.nn.Module):
    """Gives the outputs of a model by name, for inputs by position."""

    def __init__(self, model, inputs, outputs):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors):
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(output[name] for name in self.outputs)


def export(model, path, inputs, outputs=("last_hidden_state",), fixed=False):
    """Write an ONNX file with named inputs and outputs, of any batch size and length unless fixed."""
    axes = dict.fromkeys((*inputs, "last_hidden_state"), TOKENS)
    axes |= dict.fromkeys(("pixel_values", "pooler_output", "text_embeds"), ROW)
    names = {"input_names": list(inputs), "output_names": list(outputs)}
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Outputs(model.eval(), list(inputs), outputs), tuple(inputs.values()), str(path), dynamo=False, **names,
            dynamic_axes=None if fixed else {name: axes[name] for name in (*inputs, *outputs)},
        )  # fmt: skip


def tokens(*names, rows=2, length=5):
    return {name: torch.ones(rows, length, dtype=torch.int64) for name in names}


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A text folder as optimum leaves it: tokenizer, config and graph; no safetensors."""
    folder = tmp_path_factory.mktemp("onnx") / "bert"
    save_bert(folder)
    model = hf.BertModel.from_pretrained(folder)
    export(model, folder / "model.onnx", tokens("input_ids", "attention_mask", "token_type_ids"))
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "vit"
    save(folder, IMAGE["vit"][0], IMAGE["vit"][1]())
    model = hf.ViTModel.from_pretrained(folder)
    outputs = ("last_hidden_state", "pooler_output")
    export(model, folder / "model.onnx", {"pixel_values": torch.zeros(2, 3, 32, 32)}, outputs)
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    return folder


def torch_model(folder, kind):
    """The torch model that a folder was exported from."""
    weights = folder.parent / "model.safetensors"
    whole = folder.parent / "torch"
    if not whole.exists():
        shutil.copytree(folder, whole)
        shutil.copy(weights, whole / "model.safetensors")
    return kind.from_pretrained(whole).eval()


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / folder.name)


@torch.inference_mode()
def hidden_of(model, text):
    return model(**wordpiece()([text], return_tensors="pt")).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("pooling", "row"),
    [
        (None, lambda hidden: hidden.mean(axis=0)),
        ("mean", lambda hidden: hidden.mean(axis=0)),
        ("cls", lambda hidden: hidden[0]),
        ("last", lambda hidden: hidden[-1]),
        ("cls+mean", lambda hidden: np.concatenate([hidden[0], hidden.mean(axis=0)])),
    ],
)
def test_a_text_graph_equals_its_torch_model(pooling, row, bert):
    encoder = OnnxEncoder(str(bert), "text", pooling)
    latents = encode_batch(encoder, TEXTS)
    model = torch_model(bert, hf.BertModel)
    expected = np.stack([row(hidden_of(model, text)) for text in TEXTS])
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    assert encoder.takes == "text" and encoder.lengths(TEXTS) == [5, 10, 2, 3]


@pytest.mark.parametrize(("name", "prefix", "row"), [("bge-tiny", "", 0), ("e5-small-v2", "query: ", None)])
def test_what_a_text_model_is_known_by_name_to_want_holds_for_its_graph_too(name, prefix, row, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / name)
    latents = encode_batch(load_encoder(str(folder), "text"), TEXTS[:1])[0]
    hidden = hidden_of(torch_model(bert, hf.BertModel), prefix + TEXTS[0])
    np.testing.assert_allclose(latents, hidden.mean(axis=0) if row is None else hidden[row], atol=1e-5)


def test_a_graph_does_not_show_its_layers_and_layers_of_a_sentence_model_take_one_pooling(bert, tmp_path):
    with pytest.raises(EncoderError, match="does not show its layers, so no pooling of layer 0; leave out the @"):
        OnnxEncoder(str(bert), "text", "mean+mean@0").encode(TEXTS)
    folder, _ = save_sentence(tmp_path / "st", dense())
    shutil.copy(bert / "model.onnx", folder / "model.onnx")
    with pytest.raises(
        EncoderError, match=r"no pooling 'mean\+cls', as the layers after it \(2_Dense\) take as many parts"
    ):
        OnnxEncoder(str(folder), "text", "mean+cls")


def test_a_graph_gives_its_pooler_or_its_tokens(vit):
    with pytest.raises(EncoderError, match=r"no pooling 'cls\+pooler', as a graph gives its pooler or its tokens; ch"):
        OnnxEncoder(str(vit), "image", "cls+pooler")


def test_a_folder_that_is_called_onnx_and_holds_all_is_taken_as_it_is(vit, tmp_path):
    folder = shutil.copytree(vit, tmp_path / "onnx", ignore=shutil.ignore_patterns("config.json"))
    assert load_encoder(str(folder / "model.onnx"), "image").encode(pictures()[:1]).shape == (1, 32)


def test_an_image_graph_equals_its_torch_model(vit):
    encoder = load_encoder(str(vit), "image")
    model, processor = torch_model(vit, hf.ViTModel), IMAGE["vit"][1]()
    with torch.inference_mode():
        output = model(**processor(images=pictures(), return_tensors="pt"))
    np.testing.assert_allclose(encode_batch(encoder, pictures()), output.last_hidden_state[:, 0], atol=1e-5)
    pooled = OnnxEncoder(str(vit), "image", "cls+mean").encode(pictures())
    np.testing.assert_allclose(pooled[:, 32:], output.last_hidden_state[:, 1:].mean(dim=1), atol=1e-5)
    assert encoder.takes == "image" and not hasattr(encoder, "lengths")
    with pytest.warns(UserWarning, match="made for pooling 'cls', and is used with 'pooler'"):
        own = OnnxEncoder(str(vit), "image", "pooler").encode(pictures())
    np.testing.assert_allclose(own, output.pooler_output, atol=1e-5)


def test_a_graph_that_gives_a_row_per_item_is_taken_at_its_word(tmp_path):
    folder = save(tmp_path / "clip", lambda: text_tower(), wordpiece(eos_token="[SEP]"))
    model = hf.CLIPTextModelWithProjection.from_pretrained(folder)
    export(model, folder / "model.onnx", tokens("input_ids", "attention_mask"), ("text_embeds", "last_hidden_state"))
    encoder = OnnxEncoder(str(folder / "model.onnx"), "text")
    assert (encoder.output, encoder.pooling) == ("text_embeds", "graph")
    with torch.inference_mode():
        batch = encoder._front.tokens.tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
        expected = model.eval()(**batch).text_embeds
    np.testing.assert_allclose(encode_batch(encoder, TEXTS), expected, atol=1e-5)


def text_tower():
    return hf.CLIPTextModelWithProjection(
        hf.CLIPTextConfig(**LAYERS, **IDS, max_position_embeddings=16, projection_dim=8)
    )


def test_a_graph_of_fixed_size_is_filled_up_and_cut(tmp_path):
    folder = save(tmp_path / "bert", lambda: hf.BertModel(hf.BertConfig(**LAYERS, **IDS)), wordpiece())
    model = hf.BertModel.from_pretrained(folder)
    export(model, folder / "model.onnx", tokens("input_ids", "attention_mask", rows=3, length=12), fixed=True)
    encoder = OnnxEncoder(str(folder / "model.onnx"), "text")
    assert encoder.batch_size == 3
    expected = np.stack([hidden_of(model.eval(), text).mean(axis=0) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_a_graph_in_a_folder_called_onnx_is_described_above_it(bert, tmp_path):
    folder = copied(bert, tmp_path)
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    encoder = OnnxEncoder(str(folder), "text")
    assert encoder.fingerprint["name"] == "bert/onnx/model.onnx" and encoder.source.endswith("bert/onnx/model.onnx")
    np.testing.assert_array_equal(encoder.encode(TEXTS), OnnxEncoder(str(bert), "text").encode(TEXTS))
    assert load_encoder(encoder.source, "text").fingerprint == encoder.fingerprint


def test_what_sentence_transformers_saved_decides_the_pooling(bert, tmp_path):
    folder = copied(bert, tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 4, "do_lower_case": true}')
    encoder = OnnxEncoder(str(folder), "text")
    assert encoder.pooling == "cls" and encoder.lengths(TEXTS) == [4, 4, 2, 3]


def test_the_fingerprint_follows_graph_weights_and_preprocessing(bert, vit, tmp_path):
    first = OnnxEncoder(str(bert), "text").fingerprint
    assert OnnxEncoder(str(bert), "text").fingerprint == first
    assert first["loader"] == "onnx" and first["outputs"] == ["last_hidden_state"]
    assert first["inputs"] == dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), "tensor(int64)")
    folder = copied(bert, tmp_path)
    graph = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if tensor.raw_data and len(tensor.dims) == 2)
    weight.raw_data = weight.raw_data[:-1] + bytes([weight.raw_data[-1] ^ 1])
    onnx.save(graph, folder / "model.onnx")
    assert differing(first, OnnxEncoder(str(folder), "text").fingerprint) == {"weights"}
    assert differing(first, OnnxEncoder(str(bert), "text", "cls").fingerprint) == {"pooling", "reading"}
    pictures_folder = copied(vit, tmp_path)
    edit_json(pictures_folder / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    before = OnnxEncoder(str(vit), "image").fingerprint
    assert differing(before, OnnxEncoder(str(pictures_folder), "image").fingerprint) == {"preprocessing"}


def differing(one, two):
    return {name for name in one | two if one.get(name) != two.get(name)}


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("text", "tokenizer", "has no tokenizer.json, which a text encoder needs to prepare its input: put it beside"),
        ("image", "preprocessor", "has no preprocessor_config.json, which an image encoder needs"),
    ],
)
def test_what_is_not_beside_the_graph_is_named(kind, file, message, bert, vit, tmp_path):
    folder = copied(bert if kind == "text" else vit, tmp_path)
    for path in folder.glob(f"{file}*"):
        path.unlink()
    with pytest.raises(EncoderError, match=message):
        OnnxEncoder(str(folder), kind)


def test_a_file_that_is_no_graph_is_named(bert, tmp_path):
    folder = copied(bert, tmp_path)
    whole = (folder / "model.onnx").read_bytes()
    for content in (b"", b"\x80\x04\x95pickle", whole[: len(whole) // 2], b"\x0a" + b"\xff" * 12, b"<html></html>"):
        (folder / "model.onnx").write_bytes(content)
        with pytest.raises(EncoderError, match="model.onnx"):
            OnnxEncoder(str(folder), "text")
    with pytest.raises(EncoderError, match=r"no ONNX file .*nowhere.onnx, nor .* \(looked in "):
        OnnxEncoder("nowhere.onnx", "text")
    with pytest.raises(EncoderError, match="encodes images or texts, not audio items"):
        OnnxEncoder(str(bert), "audio")


def test_inputs_and_outputs_that_cannot_be_served_are_named(bert, vit, tmp_path):
    with pytest.raises(EncoderError, match="wants the input 'pixel_values'"):
        shutil.copy(vit / "model.onnx", copied(bert, tmp_path) / "model.onnx")
        OnnxEncoder(str(tmp_path / "bert"), "text").encode(TEXTS)
    with pytest.raises(EncoderError, match="no tokens or pooler for pooling 'pooler'; found: last_hidden_state"):
        OnnxEncoder(str(bert), "text", "pooler")
    with pytest.raises(EncoderError, match="no pooling 'max'; found: cls, mean"):
        OnnxEncoder(str(bert), "text", "max")


def test_class_scores_are_not_taken_for_latents(tmp_path, vit):
    folder = copied(vit, tmp_path)
    write_product(folder, output="logits")
    with pytest.raises(EncoderError, match="gives only logits, the scores of its classes; export it for feature"):
        OnnxEncoder(str(folder), "image")


def test_without_onnxruntime_the_extra_is_named(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"fusemix\[onnx\]\""):
        OnnxEncoder(str(bert), "text")


def write_product(folder, location=None, output="image_embeds", nested=None):
    """Write a graph that multiplies all pixels (n, 3, 32, 32) by a matrix (3072, 4), perhaps kept elsewhere."""
    make, float_ = onnx.helper, onnx.TensorProto.FLOAT
    matrix = onnx.numpy_helper.from_array(np.ones((3072, 4), np.float32), "matrix")
    content = matrix.raw_data
    if location is not None:
        onnx.external_data_helper.set_external_data(matrix, location)
        matrix.ClearField("raw_data")
    nodes, kept = [make.make_node("Flatten", ["pixel_values"], ["flat"])], [matrix]
    if nested == "constant":
        nodes, kept = [*nodes, make.make_node("Constant", [], ["matrix"], value=matrix)], []
    if nested == "branch":
        there = make.make_tensor_value_info("there", float_, [3072, 4])
        body = make.make_graph(
            [make.make_node("Identity", ["matrix"], ["there"])], "b", [], [there], initializer=[matrix]
        )
        yes = make.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
        branch = make.make_node("If", ["yes"], ["chosen"], then_branch=body, else_branch=body)
        nodes, kept = [*nodes, branch], [yes]
    nodes.append(make.make_node("MatMul", ["flat", "chosen" if nested == "branch" else "matrix"], [output]))
    given = make.make_tensor_value_info("pixel_values", float_, ["n", 3, 32, 32])
    graph = make.make_graph(nodes, "g", [given], [make.make_tensor_value_info(output, float_, ["n", 4])], kept)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return content


@pytest.mark.parametrize("nested", [None, "constant", "branch"])
@pytest.mark.parametrize(
    "location", ["../matrix.bin", "sub/../../matrix.bin", "ABSOLUTE", "link.bin", "..\\matrix.bin"]
)
def test_weights_outside_of_the_folder_are_refused_before_the_graph_is_opened(
    location, nested, vit, tmp_path, monkeypatch
):
    import onnxruntime

    folder = copied(vit, tmp_path)
    (folder / "sub").mkdir()
    outside = tmp_path / "matrix.bin"
    outside.write_bytes(write_product(folder, str(outside) if location == "ABSOLUTE" else location, nested=nested))
    (folder / "link.bin").symlink_to(outside)
    (folder / "..\\matrix.bin").write_bytes(outside.read_bytes())
    opened = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **more: opened.append(args))
    with pytest.raises(EncoderError, match=r"keeps weights in .*(wanted a file in its own folder|a link out of its)"):
        OnnxEncoder(str(folder), "image")
    assert opened == []


@pytest.mark.parametrize("location", ["../matrix.bin", "ABSOLUTE", "link.bin"])
def test_onnxruntime_refuses_such_weights_itself(location, vit, tmp_path):
    import onnxruntime

    folder, outside = copied(vit, tmp_path), tmp_path / "matrix.bin"
    outside.write_bytes(write_product(folder, str(outside) if location == "ABSOLUTE" else location))
    (folder / "link.bin").symlink_to(outside)
    with pytest.raises(Exception, match="External data path"):
        onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def test_weights_in_files_beside_the_graph_are_read_and_hashed(vit, tmp_path):
    folder = copied(vit, tmp_path)
    content = write_product(folder, "matrix.bin")
    with pytest.raises(EncoderError, match=r"keeps weights in 'matrix.bin', which is not beside it"):
        OnnxEncoder(str(folder), "image")
    (folder / "matrix.bin").write_bytes(content)
    encoder = load_encoder(str(folder), "image")
    latents = encode_batch(encoder, pictures())
    pixels = IMAGE["vit"][1]()(images=pictures(), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(latents[:, 0], pixels.reshape(3, -1).sum(axis=1), rtol=1e-4)
    (folder / "matrix.bin").write_bytes(content[:-4] + np.float32(2).tobytes())
    assert differing(encoder.fingerprint, load_encoder(str(folder), "image").fingerprint) == {"weights"}
