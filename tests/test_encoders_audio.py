"""Audio and video encoders: tiny random models of the real classes, compared with the classes themselves."""

import sys

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from fusemix.encoders import load_encoder
from fusemix.errors import EncoderError, MissingExtraError
from fusemix.sound import Sound

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONVOLUTIONS = {"conv_dim": (16, 16), "conv_kernel": (20, 20), "conv_stride": (16, 20), "num_conv_pos_embeddings": 4}
WAVE = {**LAYERS, **CONVOLUTIONS, "num_feat_extract_layers": 2, "num_conv_pos_embedding_groups": 2}
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 1,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "max_source_positions": 100, "vocab_size": 20,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "init_std": 0.1,
}  # fmt: skip
HTSAT = {
    "num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_embeds_hidden_size": 8, "depths": [1, 1],
    "num_attention_heads": [2, 2], "num_hidden_layers": 2, "hidden_size": 16, "patch_size": 4, "patch_stride": [4, 4],
}  # fmt: skip
BERT = {**LAYERS, "vocab_size": 20, "max_position_embeddings": 16, "pad_token_id": 1}


def clap(fusion):
    return hf.ClapConfig(audio_config={**HTSAT, "enable_fusion": fusion}, text_config=BERT, projection_dim=8)


def clap_extractor(truncation):
    return hf.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation=truncation)


# name: (model, feature extractor, seconds of its window)
MODELS = {
    "whisper": (
        lambda: hf.WhisperModel(hf.WhisperConfig(**WHISPER)),
        lambda: hf.WhisperFeatureExtractor(chunk_length=2),
        2,
    ),
    "clap": (lambda: hf.ClapModel(clap(False)), lambda: clap_extractor("rand_trunc"), 1),
    "clap_fused": (lambda: hf.ClapModel(clap(True)), lambda: clap_extractor("fusion"), 1),
    "htsat": (lambda: hf.ClapAudioModel(clap(False).audio_config), lambda: clap_extractor("rand_trunc"), 1),
    "ast": (
        lambda: hf.ASTModel(hf.ASTConfig(**LAYERS, max_length=64, num_mel_bins=16)),
        lambda: hf.ASTFeatureExtractor(max_length=64, num_mel_bins=16),
        0.655,
    ),
    "wav2vec2": (
        lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVE, feat_extract_norm="layer")),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        30,
    ),
    "wav2vec2_group": (
        lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVE, feat_extract_norm="group")),
        lambda: hf.Wav2Vec2FeatureExtractor(),
        30,
    ),
    "hubert": (
        lambda: hf.HubertModel(hf.HubertConfig(**WAVE, feat_extract_norm="layer")),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        30,
    ),
    # Their layers mix padding into the real frames, so lengths never share a batch.
    "wavlm": (
        lambda: hf.WavLMModel(hf.WavLMConfig(**WAVE, feat_extract_norm="layer")),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        30,
    ),
    "data2vec": (
        lambda: hf.Data2VecAudioModel(hf.Data2VecAudioConfig(**WAVE)),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        30,
    ),
    "conformer": (
        lambda: hf.Wav2Vec2ConformerModel(hf.Wav2Vec2ConformerConfig(**WAVE, feat_extract_norm="layer")),
        lambda: hf.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        30,
    ),
}


def save(folder, name):
    torch.manual_seed(0)
    model, extractor, _ = MODELS[name]
    for part in (model(), extractor()):
        part.save_pretrained(folder)
    return str(folder)


def sound(seconds, rate=16000, seed=0):
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    samples = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 900) * t) + rng.normal(0, 0.05, len(t))
    return Sound(samples.astype(np.float32), rate)


@torch.inference_mode()
def direct(folder, name, samples):
    """The latent of one window, from the model class itself."""
    kind, extractor = type(MODELS[name][0]()), MODELS[name][1]()
    model = kind.from_pretrained(folder).eval()
    rate = extractor.sampling_rate
    if name == "whisper":
        features = extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
        hidden = model.encoder(features).last_hidden_state[0]
        return hidden[: -(-len(samples) // 320)].mean(dim=0).numpy()
    if name in ("clap", "clap_fused", "htsat"):
        features = extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
        tower = model if name == "htsat" else model.audio_model
        return tower(features, is_longer=torch.tensor([[False]])).pooler_output[0].numpy()
    features = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values
    output = model(features)
    return (output.pooler_output if name == "ast" else output.last_hidden_state.mean(dim=1))[0].numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp("audio") / name, name) for name in MODELS}


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", MODELS)
def test_an_audio_encoder_equals_its_model_class_alone_and_in_a_batch(name, folders):
    encoder = load_encoder(folders[name], "audio")
    rate, window = encoder.rate, MODELS[name][2]
    sounds = [sound(min(window, 1) * part, rate, seed) for seed, part in enumerate((1, 0.4, 0.73, 0.11))]
    latents = encoder.encode(sounds)
    assert encoder.takes == "audio" and latents.dtype == np.float32
    assert encoder.variable_length == (MODELS[name][2] == 30)
    for latent, item in zip(latents, sounds, strict=True):
        np.testing.assert_allclose(latent, direct(folders[name], name, item.samples), atol=2e-5)
        np.testing.assert_allclose(latent, encoder.encode([item])[0], atol=2e-5)
    assert np.abs(latents[0] - latents[1]).max() > 1e-3
    assert "torchvision" not in sys.modules and "torchaudio" not in sys.modules


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", ["whisper", "clap", "clap_fused", "ast"])
def test_a_long_clip_is_the_mean_of_its_windows_weighted_by_their_length(name, folders):
    encoder = load_encoder(folders[name], "audio")
    clip = sound(MODELS[name][2] * 2.3, encoder.rate)
    parts = [clip.samples[start : start + encoder.window] for start in range(0, len(clip.samples), encoder.window)]
    assert [len(part) / encoder.window for part in parts] == pytest.approx([1, 1, 0.3], abs=0.01)
    expected = np.average([direct(folders[name], name, part) for part in parts], axis=0, weights=[*map(len, parts)])
    latents = encoder.encode([clip, sound(0.3, encoder.rate)])
    np.testing.assert_allclose(latents[0], expected, atol=2e-5)
    encoder.batch_size = 2
    np.testing.assert_allclose(encoder.encode([clip, sound(0.3, encoder.rate)]), latents, atol=2e-5)
    np.testing.assert_array_equal(encoder.encode([clip]), encoder.encode([clip]))


def test_a_network_on_the_waveform_is_cut_after_thirty_seconds(folders):
    encoder = load_encoder(folders["wav2vec2"], "audio")
    clip = sound(31, 16000)
    parts = [clip.samples[: 30 * 16000], clip.samples[30 * 16000 :]]
    expected = np.average([direct(folders["wav2vec2"], "wav2vec2", part) for part in parts], axis=0, weights=[30, 1])
    np.testing.assert_allclose(encoder.encode([clip])[0], expected, atol=2e-5)


@pytest.mark.parametrize("name", ["whisper", "clap", "hubert"])
def test_half_precision_gives_nearly_the_same(name, folders):
    clips = [sound(1, 48000), sound(0.4, 48000, 1)]
    one, two = (load_encoder(folders[name], "audio", precision=word).encode(clips) for word in ("float32", "bfloat16"))
    assert 0 < np.abs(one - two).max() < 0.05 * np.abs(one).max()


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", MODELS)
def test_a_clip_shorter_than_one_frame_and_silence_have_latents(name, folders):
    encoder = load_encoder(folders[name], "audio")
    short = [Sound(np.ones(n, np.float32), rate) for n in (0, 1, 100) for rate in (8000, 48000)]
    latents = encoder.encode([*short, Sound(np.zeros(16000, np.float32), 16000)])
    assert len(latents) == 7 and np.isfinite(latents).all()


def test_sound_of_any_rate_is_resampled(folders):
    import soxr

    encoder = load_encoder(folders["whisper"], "audio")
    clip = sound(1.1, 44100)
    there = Sound(soxr.resample(clip.samples, 44100, 16000), 16000)
    np.testing.assert_allclose(encoder.encode([clip]), encoder.encode([there]), atol=1e-6)
    pure = [Sound(np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32), rate) for rate in (16000, 48000)]
    one, two = encoder.encode(pure)
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.999


def test_what_is_missing_or_wrong_is_named(folders, monkeypatch):
    encoder = load_encoder(folders["whisper"], "audio")
    with pytest.raises(EncoderError, match=r"one channel, samples of shape \(T,\), got \(2, 100\)"):
        encoder.encode([Sound(np.zeros((2, 100), np.float32), 16000)])
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MissingExtraError, match=r'44100 Hz .* of 16000 Hz needs soxr.*"fusemix\[audio\]"'):
        encoder.encode([sound(0.1, 44100)])


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", MODELS)
def test_a_fingerprint_is_the_same_on_every_load_and_names_a_changed_setting(name, folders):
    first, second = (load_encoder(folders[name], "audio") for _ in range(2))
    assert first.fingerprint == second.fingerprint and first.source == folders[name]
    assert first.fingerprint["preprocessing"]["sampling_rate"] == first.rate
    assert first.fingerprint["preprocessing"]["window"] == first.window


def test_a_model_without_ears_is_refused(tmp_path):
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="is a bert model; for audio items found: audio-spectrogram-transformer"):
        load_encoder(str(tmp_path), "audio")


def frames(*counts):
    rng = np.random.default_rng(0)
    return [[Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)) for _ in range(n)] for n in counts]


def test_a_video_is_the_mean_of_its_frames_through_any_image_encoder():
    encoder, image = load_encoder("hog", "video"), load_encoder("hog", "image")
    videos = frames(3, 1, 90)
    calls = []
    encoder.image.encode = lambda items: calls.append(len(items)) or image.encode(items)
    latents = encoder.encode(videos)
    assert encoder.takes == "video" and latents.dtype == np.float32 and max(calls) <= image.batch_size
    for latent, video in zip(latents, videos, strict=True):
        np.testing.assert_allclose(latent, image.encode(video).mean(axis=0), atol=1e-5)
    assert encoder.fingerprint["image"] == image.fingerprint and encoder.fingerprint["name"] == "hog"
    assert encoder.fingerprint != image.fingerprint and encoder.source == "hog"
    with pytest.raises(EncoderError, match="hog: video 2 of the batch has no frame"):
        encoder.encode([videos[0], []])


def test_an_image_model_sees_a_video_and_an_audio_model_hears_it(folders, tmp_path):
    torch.manual_seed(0)
    hf.ViTModel(hf.ViTConfig(**LAYERS, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path), "video").encode(frames(2, 1)).shape == (2, 32)
    for name in ("whisper", "clap"):
        assert load_encoder(folders[name], "video").takes == "audio"
    with pytest.raises(EncoderError, match="the encoder 'minilm' takes text items, but these are video items"):
        load_encoder("minilm", "video")
