"""Tiny pipelines of diffusers with random weights, in folders: the real classes, a few thousand numbers."""

import json

import numpy as np
import torch

SIDE = 16  # of the pictures


def encode_sound(sounds):
    """A frozen encoder of sounds: loudness in eight bands."""
    spectra = [
        np.abs(np.fft.rfft(sound.samples.mean(axis=1) if sound.samples.ndim > 1 else sound.samples)) for sound in sounds
    ]
    return np.stack([[band.mean() for band in np.array_split(spectrum, 8)] for spectrum in spectra])


def save_stable_diffusion(folder, seed=0):
    """A StableDiffusionPipeline: conditioned on 12 tokens of 32 numbers."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        vae=_vae(), unet=_unet(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), **_texts(folder),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def save_stable_unclip(folder, seed=0):
    """A StableUnCLIPImg2ImgPipeline: conditioned on the 24 numbers of a CLIP image embedding."""
    import transformers as hf
    from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    torch.manual_seed(seed)
    config = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=24,
    )  # fmt: skip
    size = {"shortest_edge": 16}
    processor = hf.CLIPImageProcessorPil(size=size, crop_size={"height": 16, "width": 16})
    unet = _unet(class_embed_type="projection", projection_class_embeddings_input_dim=48)
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=processor, image_encoder=hf.CLIPVisionModelWithProjection(config),
        image_normalizer=StableUnCLIPImageNormalizer(24), image_noising_scheduler=DDPMScheduler(), **_texts(folder),
        unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), vae=_vae(),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def _texts(folder):
    import transformers as hf

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    words = folder.parent / f"{folder.name}-words"
    words.mkdir(parents=True)
    (words / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = hf.CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=12)
    config = hf.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return {"text_encoder": hf.CLIPTextModel(config), "tokenizer": tokenizer}


def _unet(**more):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=SIDE // 2, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=4, attention_head_dim=4, **more,
    )  # fmt: skip


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 16], norm_num_groups=4, in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
