"""The canaries: what changes an encoder under one fingerprint is caught, and all else raises no alarm."""

import hashlib
import string
from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers.activations import ACT2FN
from transformers.image_utils import SizeDict

from conftest import encode_image
from fusemix.encoders import canaries, load_encoder
from fusemix.encoders.canaries import COSINE, COUNT, canary_items, check_canaries, encode_canaries
from fusemix.encoders.vectors import Precomputed
from fusemix.errors import MismatchError

# As deep as runs in a moment, with weights so large that the activation function matters, as after training.
LAYERS = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64}
VIT = {**LAYERS, "image_size": 32, "patch_size": 8, "initializer_factor": 3.0}
BERT = {**LAYERS, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0}
WHISPER = {
    "d_model": 32, "encoder_layers": 6, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 1,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "max_source_positions": 100, "vocab_size": 20,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "init_std": 0.2,
}  # fmt: skip
ACTIVATIONS = ("activation_fn", "intermediate_act_fn")
SQUARE, SHORT = {"height": 32, "width": 32}, {"shortest_edge": 40}


def letters():
    """A tokenizer of single letters, of both cases."""
    signs = string.ascii_letters + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", *signs, *(f"##{sign}" for sign in signs)]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]"), len(words)


def parts(name):
    if name == "clip":
        model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT, projection_dim=8))
        return model, hf.CLIPImageProcessorPil(size=SHORT, crop_size=SQUARE)
    if name == "bert":
        tokenizer, size = letters()
        return hf.BertModel(hf.BertConfig(**BERT, vocab_size=size)), tokenizer
    return hf.WhisperModel(hf.WhisperConfig(**WHISPER)), hf.WhisperFeatureExtractor(chunk_length=2)


KINDS = {"clip": "image", "bert": "text", "whisper": "audio"}


@pytest.fixture(scope="module", autouse=True)
def items_once():
    """The same items again and again: only the first time they are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canaries, "canary_items", cache(canary_items))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    # "e5-small" gives the text encoder a prefix to lose.
    places = {name: tmp_path_factory.mktemp("canaries") / ("e5-small" if name == "bert" else name) for name in KINDS}
    for name, place in places.items():
        for part in parts(name):
            part.save_pretrained(place)
    return places


@pytest.fixture
def load(folders):
    return lambda name: load_encoder("minilm" if name == "minilm" else str(folders[name]), KINDS.get(name, "text"))


@pytest.fixture(scope="module")
def stored(folders):
    specs = {"minilm": ("minilm", "text"), **{name: (str(folders[name]), kind) for name, kind in KINDS.items()}}
    return {name: encode_canaries(load_encoder(*spec)) for name, spec in specs.items()}


def activation(name):
    def swap(encoder):
        found = [(m, key) for m in encoder.model.modules() for key in ACTIVATIONS if hasattr(m, key)]
        for module, key in found:
            setattr(module, key, ACT2FN[name])
        assert found

    return swap


def norm_eps(encoder):
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 0.1


def attention_scale(encoder):
    found = [(m, key) for m in encoder.model.modules() for key in ("scale", "scaling") if hasattr(m, key)]
    for module, key in found:
        setattr(module, key, getattr(module, key) * 2**0.5)
    assert found


def setting(part, **values):
    def swap(encoder):
        target = getattr(encoder, part) if part else encoder
        for name, value in values.items():
            assert getattr(target, name) != value
            setattr(target, name, value)

    return swap


def lower_casing(encoder):
    encoder.tokens.tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)


def two_tensors(encoder):
    one, two = (encoder.model.layers[number].fc1.weight for number in (0, 5))
    one.data, two.data = two.data, one.data


def wrong_rate(encoder):
    encoder._windows = lambda sound: type(encoder)._windows(encoder, sound._replace(rate=encoder.rate))


SWAPS = {
    "quick gelu for gelu": ("bert", activation("quick_gelu")),
    "quick gelu in a trained network": ("minilm", activation("quick_gelu")),
    "relu for quick gelu": ("clip", activation("relu")),
    "relu for gelu": ("whisper", activation("relu")),
    "resize filter": ("clip", setting("processor", resample=2)),
    "nearest pixel": ("clip", setting("processor", resample=0)),
    "mean": ("clip", setting("processor", image_mean=[0.5, 0.5, 0.5])),
    "std": ("clip", setting("processor", image_std=[0.5, 0.5, 0.5])),
    "no crop": ("clip", setting("processor", do_center_crop=False, size=SizeDict(height=32, width=32))),
    "smaller before the crop": ("clip", setting("processor", size=SizeDict(shortest_edge=36))),
    "rescale factor": ("clip", setting("processor", rescale_factor=1 / 127.5)),
    "no normalisation": ("clip", setting("processor", do_normalize=False)),
    "pooling of patches": ("clip", setting("", pooling="mean")),
    "norm eps": ("clip", norm_eps),
    "attention scale": ("clip", attention_scale),
    "truncation": ("bert", setting("tokens", max_tokens=48)),
    "pooling of tokens": ("bert", setting("", pooling="cls")),
    "lower-casing": ("bert", lower_casing),
    "prefix": ("bert", setting("tokens", prefix="")),
    "attention scale of texts": ("bert", attention_scale),
    "two tensors": ("whisper", two_tensors),
    "rate": ("whisper", wrong_rate),
    "window": ("whisper", setting("", window=16000)),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_silent_swap_under_one_fingerprint_is_caught(swap, load, stored):
    name, change = SWAPS[swap]
    encoder = load(name)
    change(encoder)
    assert encoder.fingerprint == load(name).fingerprint
    with pytest.raises(MismatchError, match="says that it is the same, but it gives other latents: on canary"):
        check_canaries(encoder, stored[name])


@pytest.mark.parametrize("name", [*KINDS, "minilm"])
def test_no_alarm_on_another_load_batch_size_or_number_of_threads(name, load, stored):
    encoder, threads = load(name), torch.get_num_threads()
    check_canaries(encoder, stored[name])
    try:
        for batch_size, number in ((1, 1), (3, 2), (16, 2)):
            encoder.batch_size = batch_size
            torch.set_num_threads(number)
            check_canaries(encoder, stored[name])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [*KINDS, "minilm"])
def test_no_alarm_on_rounding(name, load, stored):
    encoder, rng = load(name), np.random.default_rng(0)
    exact = encoder.encode
    encoder.encode = lambda items: exact(items) * (1 + 1e-3 * rng.standard_normal(stored[name].shape[1]))
    check_canaries(encoder, stored[name])
    check_canaries(load(name), torch.from_numpy(stored[name]))
    check_canaries(load(name), stored[name].astype(np.float16))


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_is_held_to_itself_by_a_wider_measure(name, folders):
    encoder = load_encoder(str(folders[name]), KINDS[name], precision="bfloat16")
    stored = encode_canaries(encoder)
    encoder.batch_size = 5
    assert encoder.fingerprint["dtype"] == "bfloat16" and COSINE["bfloat16"] < COSINE["float32"]
    check_canaries(encoder, stored)


def test_the_items_are_the_same_on_every_machine():
    """Bytes, not latents: a generator that changed would look like sixteen changed encoders."""
    digests = {}
    for kind in ("image", "text", "audio", "video"):
        digest = hashlib.sha256()
        for item in canary_items(kind):
            for part in item if kind == "video" else [item]:
                digest.update(content(part))
        digests[kind] = digest.hexdigest()[:16]
        assert len(canary_items(kind)) == COUNT
    assert digests == DIGESTS


def content(item):
    if isinstance(item, str):
        return item.encode()
    # Sine and cosine may differ in their last bit from one machine to the next.
    return np.round(item.samples, 4).tobytes() if hasattr(item, "samples") else item.tobytes()


DIGESTS = {
    "audio": "b9250471918c3646",
    "image": "c85b253bc75a292c",
    "text": "7d9519ebdb43c99e",
    "video": "4be1da617cd6d628",
}


def test_the_items_cover_what_can_go_wrong():
    pictures, texts, sounds = (canary_items(kind) for kind in ("image", "text", "audio"))
    assert len({picture.size for picture in pictures}) == COUNT and {picture.mode for picture in pictures} == {"RGB"}
    ratios = [picture.width / picture.height for picture in pictures]
    assert min(ratios) < 0.3 < 1 < 3 < max(ratios)
    assert len(set(texts)) == COUNT and min(map(len, texts)) == 1 and max(len(t.split()) for t in texts) > 1000
    assert any(not text.isascii() for text in texts) and any(text != text.lower() for text in texts)
    assert len({sound.rate for sound in sounds}) >= 6 and max(len(s.samples) / s.rate for s in sounds) > 30
    assert {len(frames) for frames in canary_items("video")} == {1, 2, 3, 4}


def grey(images):
    raise AssertionError("a function of the user is never asked for canaries")


def test_other_encoders_have_no_canaries():
    assert canary_items("file") is canary_items("any") is canary_items("vector") is None
    mixed = load_encoder(f"hog+{__file__}:grey", "image")
    for encoder in (load_encoder(encode_image, "image"), Precomputed(), mixed, load_encoder(mixed, "video")):
        assert encode_canaries(encoder) is None
        check_canaries(encoder, np.ones((COUNT, 3)))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_canaries_of_an_encoder_of_pictures_work_for_videos_too(kind):
    encoder = load_encoder("hog", kind)
    stored = encode_canaries(encoder)
    assert stored.shape == (COUNT, 580)
    check_canaries(encoder, stored)
    check_canaries(encoder, None)
    with pytest.raises(MismatchError, match="on canary 4 of 16 .* the cosine with the stored latent is -1.0000"):
        check_canaries(encoder, np.where(np.arange(COUNT)[:, None] == 3, 2 * stored.mean(axis=0) - stored, stored))


def test_another_width_and_nonsense_are_refused(load, stored):
    with pytest.raises(MismatchError, match=r"'clip' gives canaries of \(16, 32\), it gave \(16, 31\)"):
        check_canaries(load("clip"), stored["clip"][:, 1:])
    encoder = load("clip")
    encoder.encode = lambda items: np.full((len(items), 32), np.nan)
    with pytest.raises(MismatchError, match="cosine"):
        check_canaries(encoder, stored["clip"])


def test_an_encoder_that_gives_the_same_to_all_items_is_itself(load):
    encoder = load("clip")
    encoder.encode = lambda items: np.ones((len(items), 32))
    check_canaries(encoder, np.ones((COUNT, 32)))
    with pytest.raises(MismatchError):
        check_canaries(encoder, np.zeros((COUNT, 32)))


def test_a_message_names_the_item_and_the_suspects(load, stored):
    encoder = load("bert")
    encoder.tokens.max_tokens = 48
    with pytest.raises(MismatchError, match=r"the text .* of [\d,]+ characters.*wanted at least 0.999; the tokenizer"):
        check_canaries(encoder, stored["bert"])
