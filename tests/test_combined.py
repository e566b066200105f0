"""Several encoders as one, what a + in a spec means, and which choices an encoder leaves."""

import numpy as np
import pytest

from conftest import encode_image
from fusemix.encoders import Encoder, load_encoder, runs_code
from fusemix.encoders.base import Latent
from fusemix.encoders.canaries import encode_canaries
from fusemix.encoders.combined import CombinedEncoder
from fusemix.encoders.video import VideoEncoder
from fusemix.errors import EncoderError
from test_encoders import drawing

TEXTS = ["a red kite", "the blue sea"]
CODE = "import numpy as np\ndef size(images):\n    return [image.size for image in images]\n"


class Fixed:
    """An encoder that gives one number."""

    def __init__(self, takes, value, **members) -> None:
        self.fingerprint, self.source, self.takes, self.batch_size = (
            {"name": f"fixed{value}"},
            f"f{value}",
            takes,
            value,
        )
        self.value = value
        self.__dict__.update(members)

    def encode(self, items) -> Latent:
        return np.full((len(items), 1), self.value, np.float32)


def test_latents_of_several_encoders_stand_side_by_side(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    spec = f"hog+{tmp_path}/mine.py:size"
    encoder, pictures = load_encoder(spec, "image"), [drawing(), drawing((30, 20))]
    latents = encoder.encode(pictures)
    assert isinstance(encoder, Encoder) and encoder.takes == "image" and encoder.batch_size == 32
    np.testing.assert_array_equal(latents[:, :-2], load_encoder("hog", "image").encode(pictures))
    assert latents[:, -2:].tolist() == [[64, 64], [30, 20]] and latents.dtype == np.float32
    assert encoder.source == spec and encoder.fingerprint["name"] == "hog+mine:size"
    assert load_encoder(encoder.source, "image").fingerprint == encoder.fingerprint
    assert encoder.fingerprint["parts"]["1"]["name"] == "hog"
    assert load_encoder("hog+hog", "image").fingerprint != load_encoder("hog+hog+hog", "image").fingerprint


def test_parts_that_take_different_items_are_refused():
    with pytest.raises(EncoderError, match="must take the same items; hog takes image, minilm takes text"):
        load_encoder("hog+minilm", "image")
    with pytest.raises(EncoderError, match=r"'hog\+hog' takes image items, but these are text items"):
        load_encoder("hog+hog", "text")


def test_the_smallest_batch_and_the_first_counter_of_tokens_decide():
    plain, counting = Fixed("text", 3), Fixed("any", 2, lengths=lambda texts: [7] * len(texts))
    assert CombinedEncoder([plain, counting]).batch_size == 2
    assert CombinedEncoder([plain, counting]).lengths(TEXTS) == [7, 7]
    assert CombinedEncoder([plain, plain]).lengths(TEXTS) == [10, 12]
    assert CombinedEncoder([counting, counting]).takes == "any"
    assert not CombinedEncoder([plain, plain]).variable_length
    assert CombinedEncoder([plain, Fixed("text", 1, variable_length=True)]).variable_length


def test_a_cocktail_of_videos_sees_every_frame_with_every_part():
    encoder = load_encoder("hog+hog", "video")
    assert encoder.takes == "video" and encoder.encode([[drawing(), drawing()]]).shape == (1, 1160)


def test_a_path_that_contains_a_plus_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c++.py").write_text(CODE)
    (tmp_path / "hog+minilm").mkdir()
    assert load_encoder("c++.py:size", "image").encode([drawing()]).tolist() == [[64, 64]]
    with pytest.raises(EncoderError, match=r"hog\+minilm': AutoModel of transformers could not load it"):
        load_encoder("hog+minilm", "text")


def test_a_spec_runs_code_if_one_of_its_parts_does():
    assert runs_code("hog+mine:f") and runs_code("mine.py:f+timm:resnet18")
    assert not any(runs_code(spec) for spec in ("hog+minilm", "timm:resnet18", "open_clip:ViT-B-32/openai", "a/b+c/d"))


@pytest.mark.parametrize("spec", ["hog+", "+hog", "hog++hog"])
def test_an_empty_part_is_refused(spec):
    with pytest.raises(EncoderError, match=r"wanted the names of encoders joined by \+"):
        load_encoder(spec, "image")


@pytest.mark.parametrize(
    ("spec", "name"), [("hog", "hog"), (encode_image, "conftest:encode_image"), ("hog+hog", "hog.hog")]
)
def test_a_pooling_that_an_encoder_does_not_have_is_refused_and_a_precision_leaves_it_as_it_is(spec, name):
    with pytest.raises(EncoderError, match=f"the encoder '{name}' has no choice of pooling, got 'mean'"):
        load_encoder(spec, "image", pooling="mean")
    assert load_encoder(spec, "image", precision="bfloat16").fingerprint == load_encoder(spec, "image").fingerprint


@pytest.mark.parametrize(
    ("spec", "choices"),
    [
        ("minilm", {}),
        ("minilm", {"precision": "bfloat16"}),
        ("minilm+minilm", {"precision": "bfloat16"}),
        (f"minilm+{__file__}:lengths", {"pooling": "mean", "precision": "float16"}),
    ],
)
def test_the_fingerprint_tells_the_choices_that_give_the_same_encoder_again(spec, choices):
    first = load_encoder(spec, "text", **choices)
    facts = first.fingerprint
    again = load_encoder(first.source, "text", pooling=facts.get("pooling"), precision=facts.get("dtype"))
    assert again.fingerprint == facts
    assert load_encoder(first, "text", pooling=facts.get("pooling"), precision=facts.get("dtype")) is first


def lengths(texts):
    return [[len(text)] for text in texts]


def test_an_item_that_one_part_refuses_is_refused():
    refusing = Fixed("text", 3, refused=(1,))
    encoder = CombinedEncoder([refusing, Fixed("text", 2, refused=(0,)), Fixed("text", 4)])
    encoder.encode(TEXTS)
    assert encoder.refused == (0, 1)


def test_a_video_of_which_a_frame_is_refused_is_refused():
    class Picky(Fixed):
        def encode(self, frames) -> Latent:
            self.refused = [i for i, frame in enumerate(frames) if frame == "black"]
            width = 0 if len(self.refused) == len(frames) else 1
            return np.full((len(frames), width), self.value, np.float32)

    encoder = VideoEncoder(Picky("image", 2))
    clips = [["a", "b", "c"], ["black", "black", "black"], ["d"], ["e", "black"], ["f"]]
    latents = encoder.encode(clips)
    assert encoder.refused == [1, 3] and latents[[0, 2, 4]].tolist() == [[2]] * 3


def test_canaries_of_a_cocktail_are_those_of_its_parts():
    both, one = (encode_canaries(load_encoder(spec, "image")) for spec in ("hog+hog", "hog"))
    np.testing.assert_array_equal(both, np.concatenate([one, one], axis=1))
