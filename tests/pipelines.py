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


def save_stable_diffusion_xl(folder, seed=0):
    """A StableDiffusionXLPipeline: conditioned on 12 tokens of 64 numbers, and on 32 pooled ones."""
    import transformers as hf
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    texts = _texts(folder)
    second = hf.CLIPTextModelWithProjection(texts["text_encoder"].config)
    unet = _unet(
        cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(), unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), **texts,
        text_encoder_2=second, tokenizer_2=texts["tokenizer"], add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def save_stable_unclip(folder, seed=0):
    """A StableUnCLIPImg2ImgPipeline: conditioned on the 24 numbers of a CLIP image embedding."""
    from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    torch.manual_seed(seed)
    unet = _unet(class_embed_type="projection", projection_class_embeddings_input_dim=48)
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=_processor(), image_encoder=_vision(),
        image_normalizer=StableUnCLIPImageNormalizer(24), image_noising_scheduler=DDPMScheduler(), **_texts(folder),
        unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), vae=_vae(),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def save_kandinsky(folder, seed=0):
    """A KandinskyV22CombinedPipeline: conditioned on the 32 numbers of a CLIP image embedding."""
    import transformers as hf
    from diffusers import (
        DDIMScheduler,
        KandinskyV22CombinedPipeline,
        PriorTransformer,
        UnCLIPScheduler,
        UNet2DConditionModel,
        VQModel,
    )

    torch.manual_seed(seed)
    texts = _texts(folder)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), addition_embed_type="image",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), encoder_hid_dim_type="image_proj",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", encoder_hid_dim=32, cross_attention_dim=8, norm_num_groups=4,
        attention_head_dim=4, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    movq = VQModel(
        block_out_channels=[32] * 4, norm_num_groups=4, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
        latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    pipeline = KandinskyV22CombinedPipeline(
        unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), movq=movq,
        prior_prior=PriorTransformer(
            num_attention_heads=2, attention_head_dim=16, embedding_dim=32, num_layers=1, num_embeddings=12
        ),
        prior_image_encoder=_vision(32), prior_image_processor=_processor(),
        prior_text_encoder=hf.CLIPTextModelWithProjection(texts["text_encoder"].config),
        prior_tokenizer=texts["tokenizer"],
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def save_ip_adapter(folder, seed=0):
    """An IP-Adapter for `save_stable_diffusion`, and beside it the image encoder that it is made for: 24 numbers."""
    from diffusers.models.embeddings import ImageProjection
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    _vision().save_pretrained(folder / "image_encoder")
    unet, weights = _unet(), {}
    project = ImageProjection(cross_attention_dim=32, image_embed_dim=24, num_image_text_embeds=4)
    for ours, theirs in (("image_embeds.", "proj."), ("norm.", "norm.")):
        weights |= {
            f"image_proj.{theirs}{name.removeprefix(ours)}": part
            for name, part in project.state_dict().items()
            if name.startswith(ours)
        }
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for place, name in enumerate(crossing):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("k", "v"):
            weights[f"ip_adapter.{2 * place + 1}.to_{part}_ip.weight"] = torch.randn(width, 32)
    save_file(weights, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors"


def _vision(width=24):
    import transformers as hf

    return hf.CLIPVisionModelWithProjection(
        hf.CLIPVisionConfig(
            hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=8, projection_dim=width,
        )
    )  # fmt: skip


def _processor():
    import transformers as hf

    return hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


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
        projection_dim=32, max_position_embeddings=12, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return {"text_encoder": hf.CLIPTextModel(config), "tokenizer": tokenizer}


def _unet(**more):
    from diffusers import UNet2DConditionModel

    more.setdefault("cross_attention_dim", 32)
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=SIDE // 2, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4, **more,
    )  # fmt: skip


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 16], norm_num_groups=4, in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
