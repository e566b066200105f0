"""A small diffusion model that draws an emoji from a text latent: diffusers' UNet, scheduler and training utilities.

    python painter.py DATA OUT [--steps N]

DATA holds emoji/emoji.tsv (image, name, keywords) and emoji/images/. It learns small pictures from frozen MiniLM
latents of names and keywords, and never meets a sound.
"""

import argparse
import csv
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import fusemix as fm

# The picture that each class of sounds should bring about.
CONCEPTS = {
    "Dog": "dog face", "Rain": "cloud with rain", "Sea waves": "water wave", "Crying baby": "baby",
    "Clock tick": "alarm clock", "Sneezing": "sneezing face", "Helicopter": "helicopter", "Chainsaw": "carpentry saw",
    "Rooster": "rooster", "Crackling fire": "fire",
}  # fmt: skip
SIDE = 24
EMOJI = 208  # the ten concepts, and the others whose names are most diverse
BATCH = 64
LR = 1.5e-3
TEXTS = 12  # per emoji at most, see `texts_of`
APART, WORDS_APART = 0.35, 0.6  # cosine of names, and of keywords: what is nearer to a class word would compete with it
NOISE = 2.0  # of the condition, at most, as a multiple of its length: neighbours of a name must draw the same


@dataclass(frozen=True)
class Emoji:
    """Pictures and what they are called.

    Attributes:
        names: n of them; the ten concepts come first.
        pictures: (n, 3, SIDE, SIDE) in [-1, 1], on white.
        latents: (n, TEXTS, 384) of texts; those of an emoji that has fewer come round again.
    """

    names: list[str]
    pictures: Tensor
    latents: Tensor


def encode_texts(texts: Sequence[str]) -> Tensor:
    """Frozen MiniLM: (n, 384), unit norm."""
    from fusemix.encoders import load_encoder

    return torch.as_tensor(load_encoder("minilm", "text", pooling="mean").encode(list(texts))).float()


def open_emoji(data: Path, encode: Callable[[Sequence[str]], Tensor] = encode_texts) -> Emoji:
    """Read the ten concepts and as many others as EMOJI says: a diverse choice of names, by `fusemix.select`.

    Left out are flags, symbols, and whatever would compete with one of the ten: a guide dog, a chain.
    """
    with (data / "emoji.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["group"] not in ("flags", "symbols")]
    concepts = [next(row for row in rows if row["name"] == name) for name in CONCEPTS.values()]
    others = [row for row in rows if row["name"] not in CONCEPTS.values()]
    ideas = F.normalize(encode([*map(str.lower, CONCEPTS), *CONCEPTS.values()]), dim=-1)
    named = F.normalize(encode([row["name"] for row in others]), dim=-1)
    words = sorted({word for row in others for word in words_of(row)})
    near = (F.normalize(encode(words), dim=-1) @ ideas.T).amax(dim=1) >= WORDS_APART
    taken = {word for word, competes in zip(words, near.tolist(), strict=True) if competes}
    apart = ((named @ ideas.T).amax(dim=1) < APART).tolist()
    free = [i for i, row in enumerate(others) if apart[i] and not words_of(row) & taken]
    table = fm.Latents.from_arrays(name=named[free].numpy(), same=named[free].numpy())
    chosen = fm.select(table, EMOJI - len(concepts), by="diversity", on="name", split="arrays").rows
    rows = [*concepts, *(others[free[i]] for i in sorted(chosen))]
    known = Counter(word for row in rows for word in words_of(row))
    texts = [texts_of(row, known) for row in rows]
    latents = encode([text for each in texts for text in each]).split([len(each) for each in texts])
    pictures = torch.stack([picture(data / row["image"]) for row in rows])
    rounds = [each[torch.arange(TEXTS) % len(each)] for each in latents]
    return Emoji([row["name"] for row in rows], pictures, torch.stack(rounds))


def open_concepts(data: Path) -> Tensor:
    """Return the pictures of the ten concepts: (10, 3, SIDE, SIDE)."""
    with (data / "emoji.tsv").open() as file:
        images = {row["name"]: row["image"] for row in csv.DictReader(file, delimiter="\t")}
    return torch.stack([picture(data / images[name]) for name in CONCEPTS.values()])


def words_of(row: dict[str, str]) -> set[str]:
    """Return the keywords of an emoji and the words of its name."""
    return {word.strip() for word in row["keywords"].split(",") if word.strip()} | set(row["name"].split())


def texts_of(row: dict[str, str], known: Counter[str]) -> list[str]:
    """Return ways to say what an emoji shows: its name, alone and with keywords, and each word that is its alone."""
    name, words = row["name"], sorted(words_of(row) - set(row["name"].split()))
    some = np.random.default_rng(len(name)).permutation(words)[:3].tolist()
    own = [word for word in sorted(words_of(row)) if known[word] == 1]
    return [name, f"{name}: {', '.join(words)}", *(f"{word} {name}" for word in some), *own][:TEXTS]


def picture(path: Path) -> Tensor:
    """Open a picture: (3, SIDE, SIDE) in [-1, 1], on white."""
    image = Image.open(path).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = np.array(flat.resize((SIDE, SIDE), Image.Resampling.BOX))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def make_unet(width: int) -> UNet2DConditionModel:
    """Return an untrained UNet; the condition joins the time embedding and scales and shifts every block."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE, in_channels=3, out_channels=3, block_out_channels=(32, 64, 96), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3, mid_block_type="UNetMidBlock2D", up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8, class_embed_type="projection", projection_class_embeddings_input_dim=width,
        resnet_time_scale_shift="scale_shift", time_embedding_dim=256,
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    """Return the noise schedule."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=True, timestep_spacing="trailing"
    )


def train(emoji: Emoji, steps: int, seed: int = 0, told: Callable[[str], None] = print) -> UNet2DConditionModel:
    """Train a UNet on pictures and latents."""
    unet, noising = make_unet(emoji.latents.shape[-1]).to(memory_format=torch.channels_last), scheduler()
    ema = EMAModel(unet.parameters(), decay=0.995, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
    rng, started, losses = torch.Generator().manual_seed(seed), time.perf_counter(), []
    for step in range(steps):
        rows = torch.randint(len(emoji.names), (BATCH,), generator=rng)
        texts = torch.randint(TEXTS, (BATCH,), generator=rng)
        clean = emoji.pictures[rows]
        noise = torch.randn(clean.shape, generator=rng)
        times = torch.randint(noising.config.num_train_timesteps, (BATCH,), generator=rng)
        condition = disturbed(emoji.latents[rows, texts], rng)
        noisy = noising.add_noise(clean, noise, times).to(memory_format=torch.channels_last)
        said = unet(noisy, times, encoder_hidden_states=None, class_labels=condition).sample
        loss = F.mse_loss(said, noising.get_velocity(clean, noise, times))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        ema.step(unet.parameters())
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            told(f"# step {step + 1}: loss {np.mean(losses[-100:]):.4f}, {time.perf_counter() - started:.0f} s")
    ema.copy_to(unet.parameters())
    return unet.eval()


def disturbed(latents: Tensor, rng: torch.Generator) -> Tensor:
    """Add noise of a random length to conditions, and bring them back to their own."""
    noise = F.normalize(torch.randn(latents.shape, generator=rng), dim=-1)
    moved = F.normalize(latents, dim=-1) + NOISE * torch.rand(len(latents), 1, generator=rng) * noise
    return F.normalize(moved, dim=-1) * math.sqrt(latents.shape[-1])


@torch.inference_mode()
def draw(unet: UNet2DConditionModel, conditions: Tensor, seeds: Sequence[int], steps: int = 10) -> Tensor:
    """Draw one picture for each condition (n, 384): (n, 3, SIDE, SIDE) in [-1, 1]."""
    noising = scheduler()
    noising.set_timesteps(steps)
    wanted = F.normalize(conditions, dim=-1) * math.sqrt(conditions.shape[-1])
    start = [torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    pictures = torch.stack(start)
    for at in noising.timesteps:
        said = unet(pictures, at, encoder_hidden_states=None, class_labels=wanted).sample
        pictures = noising.step(said, at, pictures).prev_sample
    return pictures.clamp(-1, 1)


def as_image(picture: Tensor) -> Image.Image:
    """(3, SIDE, SIDE) in [-1, 1] to an image."""
    return Image.fromarray(((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def paint(conditions: NDArray[np.float32], seeds: Sequence[int]) -> list[Image.Image]:
    """Draw: the generator of `fusemix generate --pipeline painter.py:paint`; EMOJI_PAINTER names what `main` wrote."""
    unet = UNet2DConditionModel.from_pretrained(os.environ["EMOJI_PAINTER"]).eval()
    return [as_image(picture) for picture in draw(unet, torch.from_numpy(conditions), seeds)]


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2800)
    given = parser.parse_args()
    train(open_emoji(given.data / "emoji"), given.steps).save_pretrained(given.out)


if __name__ == "__main__":
    main()
