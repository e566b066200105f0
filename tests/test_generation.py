"""Drawing from sounds: tiny random pipelines of the real classes, what they are conditioned by, and the verb."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import fusemix as fm
import pipelines
from fusemix.encoders import load_encoder
from fusemix.errors import DataError, EncoderError, MismatchError, MissingExtraError, StoreError
from fusemix.generation import generate
from pipelines import (
    SIDE,
    encode_sound,
    save_ip_adapter,
    save_kandinsky,
    save_stable_diffusion,
    save_stable_diffusion_xl,
    save_stable_unclip,
)
from test_cli import fusemix

diffusers = pytest.importorskip("diffusers")
IP = "sd#ip/ip-adapter.safetensors"
WORDS = ["a dog barks", "rain on a roof", "waves at sea", "a siren", "an old clock", "a rooster"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two pipelines, twelve sounds with words, and pictures."""
    folder = tmp_path_factory.mktemp("generate")
    save_stable_diffusion(folder / "sd")
    save_stable_diffusion_xl(folder / "xl")
    save_stable_unclip(folder / "unclip")
    save_kandinsky(folder / "kandinsky")
    save_ip_adapter(folder / "ip")
    rng = np.random.default_rng(0)
    lines = ["sound,words,picture"]
    for i in range(12):
        time = np.arange(8000) / 16000
        tone = np.sin(2 * np.pi * (200 + 150 * (i % 6)) * time) + 0.05 * rng.normal(size=8000)
        soundfile.write(folder / f"{i}.wav", tone / 2, 16000)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.wav,{WORDS[i % 6]},{i}.png")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder


def at(place, name):
    """Return the full spec of a pipeline, perhaps with its adapter."""
    return "#".join(str(place / part) for part in name.split("#"))


@pytest.fixture(scope="module")
def models(place):
    """Sounds that land in what conditions each pipeline."""
    found = {}
    kinds = [
        *((name, "words", "text") for name in ("sd", "xl")),
        *((name, "picture", "image") for name in ("unclip", "kandinsky", IP)),
    ]
    for name, column, modality in kinds:
        pairs = fm.read_pairs(place / "t.csv", audio="sound", **{modality: column})
        target, short = f"diffusers:{at(place, name)}", name.partition("#")[0] + "-ip" * ("#" in name)
        latents = fm.extract(pairs, out=place / f"{short}-latents", audio=encode_sound, **{modality: target})
        found[name] = fm.FuseMix(lock=modality, epochs=3).fit(latents)
        found[name].use_encoder("audio", encode_sound)
        found[name].save(place / f"{short}-model")
    return found


def pixels(picture):
    return np.asarray(picture.convert("RGB"))


def test_latents_are_what_the_pipeline_itself_makes_of_texts_and_images(place):
    from diffusers import StableDiffusionPipeline, StableUnCLIPImg2ImgPipeline

    texts = load_encoder(f"diffusers:{place / 'sd'}", "text")
    own = StableDiffusionPipeline.from_pretrained(place / "sd", use_safetensors=True)
    with torch.inference_mode():
        expected = own.encode_prompt(WORDS, "cpu", 1, False)[0]
    assert np.array_equal(texts.encode(WORDS), expected.flatten(1).numpy())
    assert texts.fingerprint["shapes"] == {"prompt_embeds": [12, 32]} and texts.pipeline.unet is None
    both = load_encoder(f"diffusers:{place / 'xl'}", "text")
    assert both.fingerprint["shapes"] == {"prompt_embeds": [12, 64], "pooled_prompt_embeds": [32]}
    images = load_encoder(f"diffusers:{place / 'unclip'}", "image")
    own = StableUnCLIPImg2ImgPipeline.from_pretrained(place / "unclip", use_safetensors=True)
    picture = Image.open(place / "3.png")
    with torch.inference_mode():
        expected = own.image_encoder(own.feature_extractor(picture, return_tensors="pt").pixel_values).image_embeds
    assert np.array_equal(images.encode([picture]), expected.numpy())


def test_a_sound_that_lands_where_a_text_lies_draws_what_the_text_draws(models, place, monkeypatch):
    model, generator = models["sd"], fm.Generator(str(place / "sd"))
    wanted = torch.tensor(model.condition([WORDS[0]], "text"))
    monkeypatch.setattr(model.adapters_["audio"], "condition", lambda latents: wanted.expand(len(latents), -1))
    sound, words = (
        model.generate([item], generator, modality, n=2, seed=3, steps=2)[0]
        for item, modality in ((place / "4.wav", "audio"), (WORDS[0], "text"))
    )
    assert all(np.array_equal(pixels(one), pixels(other)) for one, other in zip(sound, words, strict=True))


def own_picture(pipeline, name, place):
    """What the pipeline itself draws from the first words or picture, by its documented arguments."""
    given = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(5)}
    picture = Image.open(place / "0.png").convert("RGB")
    if name == "kandinsky":
        pixels = pipeline.prior_image_processor(images=picture, return_tensors="pt").pixel_values
        with torch.inference_mode():
            embeds = pipeline.prior_image_encoder(pixels).image_embeds
        nothing = pipeline.prior_pipe.get_zero_embed(1)
        return pipeline.decoder_pipe(image_embeds=embeds, negative_image_embeds=nothing, **given).images[0]
    more = {
        "sd": {"prompt": WORDS[0]},
        "xl": {"prompt": WORDS[0]},
        "unclip": {"prompt": "", "image": picture},
        IP: {"prompt": "", "ip_adapter_image": picture},
    }
    return pipeline(**more[name], **given).images[0]


@pytest.mark.parametrize("name", ["sd", "xl", "unclip", "kandinsky", IP])
def test_the_same_condition_gives_the_same_picture_whatever_it_comes_from(models, place, name):
    """What lands exactly where a text lies draws what the text draws, and that is the pipeline's own picture."""
    model, generator = models[name], fm.Generator(at(place, name))
    item = WORDS[0] if name in ("sd", "xl") else place / "0.png"
    side = model.sides_[model.locked]
    (wanted,) = model.condition([item], model.locked)
    drawn = model.generate([item], generator, model.locked, seed=5, steps=2)[0][0]
    again = generator.draw(side.kind, wanted[None], [5], steps=2)[0]
    assert np.array_equal(pixels(drawn), pixels(again))
    assert drawn.size == (512, 512) if name == "kandinsky" else drawn.size == (SIDE, SIDE)
    own = own_picture(generator.pipeline, name, place)
    assert np.abs(pixels(own).astype(int) - pixels(drawn)).max() <= 1
    other = model.generate([place / "5.wav"], generator, "audio", seed=5, steps=2)[0][0]
    assert not np.array_equal(pixels(other), pixels(drawn))
    bare = model.generate([item], generator, model.locked, seed=5, steps=2, guidance=0.0)[0][0]  # no guidance at all
    assert not np.array_equal(pixels(bare), pixels(drawn))


@pytest.mark.filterwarnings("ignore:.callback:FutureWarning")  # of the combined pipeline, about its own call
@pytest.mark.parametrize("name", ["sd", "xl", "kandinsky", IP])
def test_words_draw_what_the_pipeline_itself_draws_from_them(place, name):
    """Beside what comes from a sound: also where images condition it, the pipeline's own way from words."""
    from diffusers import DiffusionPipeline

    generator = fm.Generator(at(place, name))
    drawn = generator.prompt("a dog", [5, 6], steps=2)
    own = DiffusionPipeline.from_pretrained(place / name.partition("#")[0], use_safetensors=True)
    given = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(6)}
    assert np.abs(pixels(own("a dog", **given).images[0]).astype(int) - pixels(drawn[1])).max() <= 1
    assert not np.array_equal(pixels(drawn[0]), pixels(drawn[1]))


def test_the_adapter_counts_again_after_words(models, place):
    generator = fm.Generator(at(place, IP))
    before, _, after = (
        generator.prompt("a dog", [5], steps=2) if each is None else models[IP].generate([each], generator, steps=2)[0]
        for each in (place / "0.wav", None, place / "0.wav")
    )
    assert np.array_equal(pixels(before[0]), pixels(after[0]))


def test_a_pipeline_that_draws_from_images_only_has_no_words(place):
    with pytest.raises(EncoderError, match="unclip .StableUnCLIPImg2ImgPipeline. draws from images: give a file"):
        fm.Generator(str(place / "unclip")).prompt("a dog", [0])


def test_an_adapter_that_is_none_or_of_another_kind_is_told(place, tmp_path):
    from safetensors.torch import load_file, save_file

    def refused(adapter, said, pipeline="sd"):
        with pytest.raises(EncoderError, match=said):
            fm.Generator(f"{place / pipeline}#{adapter}")

    refused("nowhere.safetensors", "no IP-Adapter 'nowhere.safetensors': no such file in .*, and none on the hub")
    refused("h94/IP-Adapter/none.bin", "wanted a .safetensors file")
    refused(place / "ip/ip-adapter.safetensors", "KandinskyV22CombinedPipeline: such a pipeline takes no", "kandinsky")
    shutil.copytree(place / "ip", tmp_path / "ip")
    file = tmp_path / "ip" / "ip-adapter.safetensors"
    weights = load_file(file)
    wide = {**weights, "image_proj.proj.weight": torch.zeros(128, 99)}
    plus = {key: value for key, value in weights.items() if not key.startswith("image_proj.proj.")}
    torn = {**weights, "ip_adapter.1.to_k_ip.weight": torch.zeros(3, 3)}
    for changed, said in (
        (wide, "takes embeddings of 99 numbers, and the image encoder beside it makes 24"),
        (plus, "is no IP-Adapter of pooled image embeddings"),
        (torn, "the adapter is for another pipeline"),
    ):
        save_file(changed, file)
        refused(file, said)
    file.write_bytes(b"{}")
    refused(file, "is damaged")
    shutil.copy(place / "ip" / "ip-adapter.safetensors", file)
    shutil.rmtree(tmp_path / "ip" / "image_encoder")
    refused(file, "could not load it")


def test_an_adapter_that_lacks_weights_or_keeps_them_elsewhere_is_told(place, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(place / "ip", tmp_path / "ip")
    weights = tmp_path / "ip" / "image_encoder" / "model.safetensors"
    kept = {key: value for key, value in load_file(weights).items() if "visual_projection" not in key}
    save_file(kept, weights, metadata={"format": "pt"})
    spec = f"{place / 'sd'}#{tmp_path / 'ip' / 'ip-adapter.safetensors'}"
    with pytest.raises(
        EncoderError, match="image encoder beside it lacks visual_projection.weight, which would be rand"
    ):
        fm.Generator(spec)
    index = json.dumps({"metadata": {}, "weight_map": {"visual_projection.weight": "more.bin"}})
    (tmp_path / "ip" / "image_encoder" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(EncoderError, match=r"keeps weights in 'more.bin'; wanted .safetensors files"):
        fm.Generator(spec)
    shutil.copytree(place / "sd", tmp_path / "sd")
    (tmp_path / "sd" / "text_encoder" / "model.safetensors.index.json").write_text(index)
    for load in (
        lambda: fm.Generator(str(tmp_path / "sd")),
        lambda: load_encoder(f"diffusers:{tmp_path / 'sd'}", "text"),
    ):
        with pytest.raises(EncoderError, match=r"keeps weights in 'more.bin'; wanted .safetensors files"):
            load()


def test_an_image_encoder_that_no_argument_of_the_pipeline_reads_conditions_nothing(place, tmp_path):
    """Stable Diffusion would swallow image_embeds, and draw the same from every sound."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place / "sd", use_safetensors=True)
    pipeline.load_ip_adapter(str(place / "ip"), subfolder="", weight_name="ip-adapter.safetensors")
    encoder, processor = pipeline.image_encoder, pipeline.feature_extractor
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place / "sd", use_safetensors=True)
    pipeline.register_modules(image_encoder=encoder, feature_extractor=processor)
    pipeline.save_pretrained(tmp_path / "both")
    with pytest.raises(EncoderError, match="is not conditioned on image items: it is conditioned on text items"):
        load_encoder(f"diffusers:{tmp_path / 'both'}", "image")
    assert load_encoder(f"diffusers:{tmp_path / 'both'}", "text").encode(["a"]).shape == (1, 384)


def test_what_cannot_be_drawn_is_told(models, place):
    generator = fm.Generator(str(place / "sd"))
    with pytest.raises(DataError, match="sd takes conditions of 384 numbers, got 7"):
        generator.draw("text", np.zeros((1, 7), np.float32), [0])
    for seed in (-1, 2**63):
        with pytest.raises(DataError, match="a seed is a number from 0 and below 2.63"):
            models["sd"].generate([place / "1.wav"], generator, seed=seed)
    generator.pipeline.vae = None
    with pytest.raises(EncoderError, match="sd .StableDiffusionPipeline. could not draw: AttributeError: "):
        generator.prompt("a dog", [0], steps=1)
    broken = fm.Generator(str(place / "kandinsky"))
    broken.pipeline.prior_pipe.text_encoder = None
    with pytest.raises(EncoderError, match="kandinsky .KandinskyV22CombinedPipeline. could not draw: "):
        broken.prompt("a dog", [0], steps=1)
    generator.pipeline.encode_prompt = lambda prompt: None
    with pytest.raises(EncoderError, match="encodes texts in a way that is not known here"):
        generator.draw("text", np.zeros((1, 384), np.float32), [0])


def test_every_step_is_told(place):
    for name in ("sd", "kandinsky"):
        heard = []
        generator = fm.Generator(str(place / name))
        generator.prompt("a dog", [0, 1], steps=3, progress=lambda *said, heard=heard: heard.append(said))
        assert heard == [*(("draw", 0, 2, f"step {step} of 3") for step in (1, 2, 3)), ("draw", 2, 2, "")]


def test_a_pipeline_is_loaded_in_the_precision_of_the_latents(place):
    """A hash of weights sees their precision: what was extracted in bfloat16 is drawn in bfloat16 anywhere."""
    half = load_encoder(f"diffusers:{place / 'sd'}", "text", precision="bfloat16")
    pairs = np.random.default_rng(0).normal(size=(2, 1, 384)).astype(np.float32)
    drawn = generate(str(place / "sd"), "text", half.fingerprint, pairs[0], 1, 0, 1, None, lambda *said: None)
    assert drawn[0][0].size == (SIDE, SIDE)
    with pytest.raises(MismatchError, match="weights"):
        fm.Generator(str(place / "sd")).check("text", half.fingerprint)


def test_a_decoder_without_an_encoder_is_told(place, tmp_path):
    fm.Generator(str(place / "kandinsky")).pipeline.decoder_pipe.save_pretrained(tmp_path / "decoder")
    with pytest.raises(
        EncoderError, match="decoder .* is not conditioned on image items: it takes no latents that it has an encoder"
    ):
        fm.Generator(str(tmp_path / "decoder")).expects("image")


def test_seeds_and_guidance_decide(models, place):
    model, generator = models["sd"], fm.Generator(str(place / "sd"))
    two = model.generate([place / "1.wav", place / "2.wav"], generator, n=2, seed=3, steps=2)
    one = model.generate([place / "1.wav"], generator, n=1, seed=4, steps=2)
    assert len(two) == 2 and len(two[0]) == 2 and not np.array_equal(pixels(two[0][0]), pixels(two[0][1]))
    assert np.abs(pixels(two[0][1]).astype(int) - pixels(one[0][0])).max() <= 1  # the seed is the picture's own
    strong = model.generate([place / "1.wav"], generator, seed=4, steps=2, guidance=20.0)
    assert not np.array_equal(pixels(strong[0][0]), pixels(one[0][0]))


def test_a_function_is_a_generator(models, place):
    seen = []

    def draw(conditions, seeds):
        seen.append((conditions.shape, list(seeds)))
        return [Image.new("RGB", (4, 4), (seed, 0, 0)) for seed in seeds]

    pictures = models["sd"].generate([place / "1.wav"], draw, n=3, seed=7)
    assert seen == [((3, 384), [7, 8, 9])] and pictures[0][2].getpixel((0, 0)) == (9, 0, 0)
    with pytest.raises(DataError, match="was to give 1 PIL images"):
        models["sd"].generate([place / "1.wav"], lambda conditions, seeds: [None])
    with pytest.raises(DataError, match="the function that draws failed: ZeroDivisionError: division by zero"):
        models["sd"].generate([place / "1.wav"], lambda conditions, seeds: 1 / 0)
    with pytest.raises(DataError, match="steps and guidance are of a pipeline"):
        models["sd"].generate([place / "1.wav"], draw, steps=3)


def test_a_pipeline_with_another_encoder_is_refused_and_one_with_the_same_is_not(models, place, tmp_path):
    save_stable_diffusion(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="other is conditioned by another encoder .*: weights"):
        models["sd"].generate([place / "1.wav"], str(tmp_path / "other"))
    with pytest.raises(
        EncoderError,
        match="sd .StableDiffusionPipeline. is not conditioned on image items: it is conditioned on text items",
    ):
        models["unclip"].generate([place / "1.wav"], str(place / "sd"))
    # Another generator with the same text encoder: what the model learned holds for it, too.
    shutil.copytree(tmp_path / "other", tmp_path / "same")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(tmp_path / "same" / part)
        shutil.copytree(place / "sd" / part, tmp_path / "same" / part)
    assert models["sd"].generate([place / "1.wav"], str(tmp_path / "same"), steps=1)[0][0].size == (SIDE, SIDE)


def test_code_of_a_folder_is_never_run(place, tmp_path):
    shutil.copytree(place / "sd", tmp_path / "evil")
    index = json.loads((tmp_path / "evil" / "model_index.json").read_text())
    (tmp_path / "evil" / "unet" / "mine.py").write_text("raise SystemExit('run')\n")
    for change in ({"unet": ["mine", "Mine"]}, {"_class_name": ["mine", "Mine"]}):
        (tmp_path / "evil" / "model_index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(EncoderError, match="code of its own|is no pipeline of diffusers"):
            fm.Generator(str(tmp_path / "evil"))


def test_pickled_weights_are_never_read(place, tmp_path):
    shutil.copytree(place / "sd", tmp_path / "pickled")
    (tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(EncoderError, match="could not load it"):
        fm.Generator(str(tmp_path / "pickled"))


def test_a_pipeline_that_is_none_or_damaged_is_told(place, tmp_path):
    with pytest.raises(
        EncoderError, match="no pipeline of diffusers .*nowhere': no such folder .* wanted the folder of"
    ):
        fm.Generator(str(tmp_path / "nowhere"))
    shutil.copytree(place / "sd", tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EncoderError, match="could not load it"):
        fm.Generator(str(tmp_path / "cut"))


def test_without_diffusers_the_extra_is_named(place, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "fusemix\[generate\]"'):
        fm.Generator(str(place / "sd"))


@pytest.fixture
def words(models, place):
    encoder = f"audio={pipelines.__file__}:encode_sound"
    return "generate", "sd-model", "--pipeline", "sd", "--steps", "1", "--encoder", encoder


def test_the_verb_draws_one_picture_that_says_how_it_was_made(words, place):
    said = fusemix(*words, "1.wav", "-o", "one.png", "--seed", "7", "-q", cwd=place).stdout
    assert said.strip() == "one.png"
    with Image.open(place / "one.png") as picture:
        facts = json.loads(picture.text["fusemix"])
        assert picture.size == (SIDE, SIDE)
    assert facts == {
        "fusemix": fm.__version__, "model": "sd-model", "pipeline": str(place / "sd"),
        "diffusers": diffusers.__version__, "num_inference_steps": 1, "guidance_scale": 7.5, "item": "1.wav",
        "modality": "audio", "seed": 7,
    }  # fmt: skip


def test_several_pictures_and_words_to_compare_are_on_one_sheet(words, place):
    asked = (*words, "1.wav", "2.wav", "-n", "2", "--compare", "a fire engine", "-o", "all.png", "--json", "-q")
    found = json.loads(fusemix(*asked, cwd=place).stdout)
    assert [p["item"] for p in found["pictures"]] == ["1.wav"] * 2 + ["2.wav"] * 2 + ["a fire engine"] * 2
    assert [p["seed"] for p in found["pictures"]] == [0, 1] * 3
    assert [p["file"] for p in found["pictures"]] == [f"all-{i:02d}.png" for i in range(1, 7)]
    assert all((place / p["file"]).is_file() for p in found["pictures"])
    with Image.open(place / "all.png") as sheet:
        assert sheet.width >= 2 * 96 and sheet.height >= 3 * 96
        assert len(json.loads(sheet.text["fusemix"])["pictures"]) == 6


def test_words_are_compared_also_where_images_condition_the_pipeline(place):
    encoder = f"audio={pipelines.__file__}:encode_sound"
    asked = ("generate", "sd-ip-model", "1.wav", "--pipeline", IP, "--steps", "1", "--encoder", encoder)
    found = json.loads(
        fusemix(*asked, "--compare", "a dog", "--compare", "3.png", "-o", "ip.png", "--json", "-q", cwd=place).stdout
    )
    assert [(p["item"], p["modality"]) for p in found["pictures"]] == [
        ("1.wav", "audio"), ("a dog", "words"), ("3.png", "image"),
    ]  # fmt: skip
    with Image.open(place / "ip-02.png") as drawn:
        (own,) = fm.Generator(at(place, "sd")).prompt("a dog", [0], steps=1)
        assert np.abs(pixels(own).astype(int) - pixels(drawn)).max() <= 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("1.wav", "-o", "one.jpg"), "-o one.jpg: wanted the name of a .png file"),
        (("nothing.wav", "-o", "x.png"), "nothing.wav"),
        (("t.csv", "-o", "x.png"), "t.csv"),
        (("1.wav", "-o", "x.png", "--pipeline", "nowhere"), "no pipeline of diffusers 'nowhere': no such folder"),
        (("1.wav", "-o", "x.png", "--from", "sound"), "no modality 'sound'; found: "),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(words, place, more, said):
    done = fusemix(*words, *more, cwd=place, code=2)
    assert said in done.stderr and "Traceback" not in done.stderr and not (place / "x.png").exists()


def test_what_is_drawn_before_a_broken_item_is_kept(words, place):
    done = fusemix(*words, "1.wav", "nothing.wav", "-o", "kept.png", "-q", cwd=place, code=2)
    assert "nothing.wav" in done.stderr and (place / "kept-01.png").is_file() and not (place / "kept.png").exists()


@pytest.mark.parametrize("index", ["[1]", "{}", '{"_class_name": "StableDiffusionPipeline", "unet": []}', "{"])
def test_an_index_that_is_none_is_told(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(EncoderError):
        fm.Generator(str(tmp_path))


def test_a_model_that_locks_nothing_conditions_nothing(place, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(2, 20, 4))
    fm.FuseMix(8, epochs=1).fit(x, y).save(tmp_path / "free")
    done = fusemix("generate", tmp_path / "free", "1.wav", "-o", "x.png", "--pipeline", "sd", cwd=place, code=2)
    assert "no modality of this model is locked; fit one with FuseMix(lock=...)" in done.stderr
    with pytest.raises(StoreError, match="holds no model"):
        fm.FuseMix.load(place / "sd")
