"""A callable as a black box, as for an API that only returns vectors: what it says of itself, retries and refusals."""

import math
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusemix.data.store import difference
from fusemix.encoders import encode_batch, load_encoder
from fusemix.encoders.function import FunctionEncoder
from fusemix.errors import EncoderError
from fusemix.sound import Sound


class Clock:
    """Time that passes only where something sleeps."""

    def __init__(self, monkeypatch):
        self.now, self.slept = 0.0, []
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Api:
    """Raises the errors it is given, one a call, and then answers."""

    def __init__(self, *errors, **facts):
        self.errors, self.calls = list(errors), 0
        for name, value in facts.items():
            setattr(self, name, value)

    def __call__(self, items):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return [[float(len(item)), 1.0] for item in items]


class RateLimitError(Exception):
    def __init__(self, retry_after=None, headers=None):
        super().__init__("429 slow down")
        if retry_after is not None:
            self.retry_after = retry_after
        if headers is not None:
            self.response = SimpleNamespace(headers=headers)


def test_a_call_that_raised_is_made_again_with_growing_waits(clock):
    api = Api(*[OSError("reset")] * 9, retries=9)
    assert FunctionEncoder(api).encode(["ab"]).tolist() == [[2, 1]]
    assert api.calls == 10 and len(clock.slept) == 9
    for number, seconds in enumerate(clock.slept):
        assert min(2**number, 60) <= seconds <= min(2**number + 1, 60)
    assert len({seconds % 1 for seconds in clock.slept[:5]}) == 5, "without jitter all clients come back at once"


def test_when_the_retries_run_out_the_error_says_how_often_it_was_tried(clock):
    api = Api(*[OSError(f"reset {number}") for number in range(5)], retries=3)
    with pytest.raises(EncoderError) as caught:
        FunctionEncoder(api).encode(["ab"])
    assert api.calls == 4 and isinstance(caught.value.__cause__, OSError)
    assert str(caught.value) == ("the encoder test_encoders_function:Api raised 4 times, at last OSError: reset 3")


def test_without_retries_an_exception_is_named_at_once(clock):
    api = Api(KeyError("embedding"))
    with pytest.raises(EncoderError, match="Api raised KeyError: 'embedding'") as caught:
        FunctionEncoder(api).encode(["ab"])
    assert api.calls == 1 and clock.slept == [] and isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (RateLimitError(7), 7),
        (RateLimitError("2.5"), 2.5),
        (RateLimitError(0), 0),
        (RateLimitError(-3), 0),
        (RateLimitError(3600), 3600),
        (RateLimitError(headers={"retry-after": "12"}), 12),
        (RateLimitError(headers={"Retry-After": "12"}), 12),
        (RateLimitError(headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), None),
        (RateLimitError(headers={}), None),
        (RateLimitError(math.nan), None),
        (RateLimitError("soon"), None),
    ],
)
def test_a_server_that_says_when_to_come_back_is_heard(error, wait, clock):
    assert FunctionEncoder(Api(error, retries=1)).encode(["ab"]).tolist() == [[2, 1]]
    assert len(clock.slept) == 1
    assert clock.slept[0] == wait if wait is not None else 1 <= clock.slept[0] <= 2


@pytest.mark.parametrize("leave", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_and_an_exit_are_not_retried(leave, clock):
    api = Api(leave(), retries=5)
    with pytest.raises(leave):
        FunctionEncoder(api).encode(["ab"])
    assert api.calls == 1 and clock.slept == []


def test_a_batch_that_the_device_has_no_memory_for_goes_back_to_the_caller(clock):
    api = Api(torch.OutOfMemoryError("no memory"), retries=5)
    with pytest.raises(torch.OutOfMemoryError):
        FunctionEncoder(api).encode(["ab"])
    assert api.calls == 1


def test_calls_are_spaced_to_the_rate_and_retries_count(clock):
    api = Api(RateLimitError(0), calls_per_minute=30, retries=1)
    encoder = FunctionEncoder(api)
    for _ in range(3):
        encoder.encode(["ab"])
    assert api.calls == 4 and clock.now == pytest.approx(3 * 2.0)
    clock.now += 100  # a pause saves up no calls
    started = clock.now
    encoder.encode(["ab"])
    encoder.encode(["ab"])
    assert clock.now == pytest.approx(started + 2)


def test_none_refuses_an_item_and_the_rest_is_kept():
    answers = [[[1, 2], None, [3, 4]], [[1, 2], [3, 4]], (None, np.ones(2))]
    encoder = FunctionEncoder(lambda items: answers.pop(0))
    latents = encode_batch(encoder, ["a", "b", "c"])
    assert encoder.refused == [1] and np.isnan(latents[1]).all() and latents[[0, 2]].tolist() == [[1, 2], [3, 4]]
    assert np.isfinite(encode_batch(encoder, ["a", "b"])).all() and encoder.refused == []
    assert encode_batch(encoder, ["a", "b"]).shape == (2, 2) and encoder.refused == [0]


def test_refused_items_have_the_width_of_the_others_once_it_is_known():
    answers = [[None, None], [[1, 2, 3]], [None]]
    encoder = FunctionEncoder(lambda items: answers.pop(0))
    assert encode_batch(encoder, ["a", "b"]).shape == (2, 0) and encoder.refused == [0, 1]
    encode_batch(encoder, ["c"])
    assert encode_batch(encoder, ["d"]).shape == (1, 3) and encoder.refused == [0]


@pytest.mark.parametrize("answer", [[None, [1.0], [1.0, 2.0]], [None, "a", [1.0]], [None, [1.0]]])
def test_a_refusal_hides_no_mistake_in_the_other_rows(answer):
    with pytest.raises(EncoderError, match="wanted"):
        encode_batch(FunctionEncoder(lambda items: answer), ["a", "b", "c"])


def test_sounds_come_at_the_rate_that_the_function_asks_for():
    got = []

    def listen(sounds):
        got.extend(sounds)
        return np.ones((len(sounds), 2))

    listen.takes, listen.sample_rate = "audio", 16_000
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32)
    encoder = load_encoder(listen, "audio")
    encoder.encode([Sound(tone, 44_100), Sound(tone, 16_000)])
    assert [sound.rate for sound in got] == [16_000, 16_000] and len(got[0].samples) == 16_000
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(got[0].samples - expected)[500:-500].max() < 1e-3 and got[1].samples is not None
    assert np.array_equal(got[1].samples, tone)


def test_without_a_rate_sounds_come_as_they_are():
    got = []
    FunctionEncoder(lambda sounds: got.extend(sounds) or [[1.0]]).encode([Sound(np.zeros(9, np.float32), 8_000)])
    assert got[0].rate == 8_000


def test_a_function_for_other_items_is_refused():
    def see(images):
        return [[1.0] for _ in images]

    see.takes = "image"
    with pytest.raises(EncoderError, match="see' takes image items, but these are text items"):
        load_encoder(see, "text")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("takes", "picture", "takes is 'picture'; found: any, image, text, audio, video, file"),
        ("takes", 3, "takes is 3"),
        ("batch_size", 0, "batch_size is 0; wanted a number of at least 1"),
        ("batch_size", "8", "batch_size is '8'"),
        ("retries", -1, "retries is -1"),
        ("retries", True, "retries is True"),
        ("sample_rate", 0, "sample_rate is 0"),
        ("calls_per_minute", 0, "calls_per_minute is 0"),
        ("calls_per_minute", math.nan, "calls_per_minute is nan"),
    ],
)
def test_an_attribute_that_is_not_what_it_should_be_is_named(name, value, message):
    with pytest.raises(EncoderError, match=message):
        FunctionEncoder(Api(**{name: value}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def f(:", "does not import: SyntaxError"),
        ("1 / 0", "does not import: ZeroDivisionError: division by zero"),
        ("import no_such_package_of_ours", "does not import: ModuleNotFoundError.*no_such_package_of_ours"),
    ],
)
def test_a_file_or_module_that_does_not_import_is_named(content, message, tmp_path, monkeypatch):
    (tmp_path / "broken_encoder.py").write_text(content)
    with pytest.raises(EncoderError, match=f"broken_encoder.py {message}"):
        load_encoder(f"{tmp_path}/broken_encoder.py:f", "text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match="the module 'broken_encoder' (does not import: |imports 'no_such)"):
        load_encoder("broken_encoder:f", "text")


def scaled(texts, factor, names=()):
    return [[len(text) * factor, len(names)] for text in texts]


def test_a_partial_is_told_from_another_by_its_arguments():
    one, same, two = (FunctionEncoder(partial(scaled, factor=factor, names=["a"])) for factor in (1, 1, 2))
    assert one.fingerprint == same.fingerprint and one.fingerprint["name"].endswith("test_encoders_function:scaled")
    assert difference(one.fingerprint, two.fingerprint) == "arguments.factor (was 1, is 2)"
    assert two.encode(["ab"]).tolist() == [[4, 1]]
    with pytest.raises(EncoderError, match="a partial of .*scaled.* holds more than numbers, strings and lists"):
        FunctionEncoder(partial(scaled, factor=np.ones(2)))
