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
from pipelines import SIDE, encode_sound, save_stable_diffusion, save_stable_unclip
from test_cli import fusemix

pytest.importorskip("diffusers")
WORDS = ["a dog barks", "rain on a roof", "waves at sea", "a siren", "an old clock", "a rooster"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two pipelines, twelve sounds with words, and pictures."""
    folder = tmp_path_factory.mktemp("generate")
    save_stable_diffusion(folder / "sd")
    save_stable_unclip(folder / "unclip")
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


@pytest.fixture(scope="module")
def models(place):
    """Sounds that land in what conditions either pipeline."""
    found = {}
    for name, column, modality in (("sd", "words", "text"), ("unclip", "picture", "image")):
        pairs = fm.read_pairs(place / "t.csv", audio="sound", **{modality: column})
        latents = fm.extract(
            pairs, out=place / f"{name}-latents", audio=encode_sound, **{modality: f"diffusers:{place / name}"}
        )
        found[name] = fm.FuseMix(lock=modality, epochs=3).fit(latents)
        found[name].use_encoder("audio", encode_sound)
        found[name].save(place / f"{name}-model")
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
    images = load_encoder(f"diffusers:{place / 'unclip'}", "image")
    own = StableUnCLIPImg2ImgPipeline.from_pretrained(place / "unclip", use_safetensors=True)
    picture = Image.open(place / "3.png")
    with torch.inference_mode():
        expected = own.image_encoder(own.feature_extractor(picture, return_tensors="pt").pixel_values).image_embeds
    assert np.array_equal(images.encode([picture]), expected.numpy())


@pytest.mark.parametrize("name", ["sd", "unclip"])
def test_the_same_condition_gives_the_same_picture_whatever_it_comes_from(models, place, name):
    """What lands exactly where a text lies draws what the text draws, and that is the pipeline's own picture."""
    model, generator = models[name], fm.Generator(str(place / name))
    item = WORDS[0] if name == "sd" else place / "0.png"
    side = model.sides_[model.locked]
    (wanted,) = model.condition([item], model.locked)
    drawn = model.generate([item], generator, model.locked, seed=5, steps=2)[0][0]
    again = generator.draw(side.kind, wanted[None], [5], steps=2)[0]
    assert np.array_equal(pixels(drawn), pixels(again)) and drawn.size == (SIDE, SIDE)
    given = {"prompt": item} if name == "sd" else {"prompt": "", "image": Image.open(item)}
    own = generator.pipeline(**given, num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
    assert np.abs(pixels(own).astype(int) - pixels(drawn)).max() <= 1
    other = model.generate([place / "5.wav"], generator, "audio", seed=5, steps=2)[0][0]
    assert not np.array_equal(pixels(other), pixels(drawn))


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
    with pytest.raises(DataError, match="steps and guidance are of a pipeline"):
        models["sd"].generate([place / "1.wav"], draw, steps=3)


def test_a_pipeline_with_another_encoder_is_refused_and_one_with_the_same_is_not(models, place, tmp_path):
    save_stable_diffusion(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="other is conditioned by another encoder .*: weights"):
        models["sd"].generate([place / "1.wav"], str(tmp_path / "other"))
    with pytest.raises(EncoderError, match="sd .StableDiffusionPipeline. is not conditioned on image items"):
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
    with pytest.raises(EncoderError, match="no such folder"):
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
        "model": "sd-model", "pipeline": "sd", "steps": 1, "guidance": None, "item": "1.wav", "modality": "audio",
        "seed": 7,
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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("1.wav", "-o", "one.jpg"), "-o one.jpg: wanted the name of a .png file"),
        (("nothing.wav", "-o", "x.png"), "nothing.wav"),
        (("t.csv", "-o", "x.png"), "t.csv"),
        (("1.wav", "-o", "x.png", "--pipeline", "nowhere"), "no encoder 'nowhere': no such folder"),
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
